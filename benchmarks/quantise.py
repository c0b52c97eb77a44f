"""Post-training quantisation by NNCF, in its own environment: an OpenVINO network -> the same in 8 bits.

    python benchmarks/quantise.py MODEL.xml CALIBRATION.npy FOLDER

CALIBRATION holds prepared photos, (n, size, size, 3) uint8; writes FOLDER/int8.xml and int8.bin.
"""

import sys
from pathlib import Path

import nncf
import numpy as np
import openvino


def main() -> None:
    """Quantise and write."""
    model, calibration, folder = sys.argv[1:]
    photos = np.load(calibration)
    network = openvino.Core().read_model(model)
    # Symmetric throughout: with asymmetric activations (the preset MIXED) OpenVINO moves their offsets into the weights
    # and then cannot fold those ("FakeQuantize on weights was not folded to constant").
    found = nncf.quantize(
        network,
        nncf.Dataset(list(photos), lambda photo: photo[None]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        subset_size=len(photos),
        fast_bias_correction=True,
    )
    openvino.save_model(found, Path(folder) / "int8.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main()
