"""The script a user would write without this project: PIL, timm in float32, scikit-learn's nearest centroid.

    python benchmarks/plain_script.py WEIGHTS SUPPORT_FOLDER PHOTO_FOLDER

WEIGHTS is a safetensors file under timm's names. Prints one label a photo, and at the end the seconds that enrolling
and answering took, as JSON.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from sklearn.neighbors import NearestCentroid
from timm.data import create_transform, resolve_model_data_config

BATCH = 32


def main() -> None:
    """Enroll, answer, print."""
    weights, support, photos = sys.argv[1:]
    model = timm.create_model("tf_efficientnet_lite0", checkpoint_path=weights, num_classes=0).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)

    def embed(files: list[Path]) -> np.ndarray:
        rows = []
        with torch.inference_mode():
            for start in range(0, len(files), BATCH):
                batch = [transform(Image.open(file).convert("RGB")) for file in files[start : start + BATCH]]
                rows.append(torch.nn.functional.normalize(model(torch.stack(batch))).numpy())
        return np.concatenate(rows)

    started = time.perf_counter()
    enrolled = sorted(Path(support).glob("*/*.jpg"))
    classifier = NearestCentroid().fit(embed(enrolled), [file.parent.name for file in enrolled])
    between = time.perf_counter()
    for label in classifier.predict(embed(sorted(Path(photos).rglob("*.jpg")))):
        print(label)
    print(json.dumps({"enroll_s": between - started, "answer_s": time.perf_counter() - between}))


if __name__ == "__main__":
    main()
