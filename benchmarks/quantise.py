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
    # The normalisation of photos stands before the first convolution; OpenVINO folds it into that one's weights, which
    # it cannot do where they are quantised ("FakeQuantize on weights was not folded to constant").
    first = next(each for each in network.get_ordered_ops() if each.get_type_name() == "Convolution")
    found = nncf.quantize(
        network,
        nncf.Dataset(list(photos), lambda photo: photo[None]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(photos),
        fast_bias_correction=True,
        ignored_scope=nncf.IgnoredScope(names=[first.get_friendly_name()]),
    )
    openvino.save_model(found, Path(folder) / "int8.xml", compress_to_fp16=False)


if __name__ == "__main__":
    main()
