"""How the number of bits that make a near-copy was chosen. Reads base/train only.

python benchmarks/constants.py [--data DIR]
"""

import argparse
import io
from pathlib import Path

import numpy as np
from common import data_folder, keep
from PIL import Image

from fewshot import images
from fewshot.datasets import class_folders
from fewshot.records import NamedBytes

N_COPIED = 200
BITS = (4, 6, 8, 10, 12, 16)


def copies(photos: list[Path]) -> dict[str, list[Path | NamedBytes]]:
    """The same photos saved again, smaller, slightly cropped, brighter."""
    made: dict[str, list[Path | NamedBytes]] = {
        "saved at quality 50": [],
        "half size": [],
        "cropped 5 %": [],
        "brighter": [],
    }
    for photo in photos:
        image = Image.open(photo).convert("RGB")
        width, height = image.size
        x, y = int(width * 0.025), int(height * 0.025)
        variants = (
            (image, 50),
            (image.resize((width // 2, height // 2)), 90),
            (image.crop((x, y, width - x, height - y)), 90),
            (image.point(lambda value: min(255, int(value * 1.15))), 90),
        )
        for name, (variant, quality) in zip(made, variants, strict=True):
            buffer = io.BytesIO()
            variant.save(buffer, "JPEG", quality=quality)
            made[name].append(NamedBytes(photo.name, buffer.getvalue()))
    return made


def difference_hashes(photos: list[Path | NamedBytes]) -> np.ndarray:
    """(n, 16) uint8."""
    data = [photo.data if isinstance(photo, NamedBytes) else photo.read_bytes() for photo in photos]
    return np.stack([np.frombuffer(images.difference_hash(images.decode(d, "", 256)[0]), np.uint8) for d in data])


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    folders = class_folders(data_folder(parser.parse_args().data) / "base" / "train")
    photos = [photo for folder in folders for photo in folder.photos]
    chosen = np.random.default_rng(0).choice(len(photos), N_COPIED, replace=False)
    hashes = difference_hashes(list(photos))
    print("near-copies: percent within n bits of their original")
    found = {}
    for name, variants in copies([photos[i] for i in chosen]).items():
        n_bits = np.bitwise_count(difference_hashes(variants) ^ hashes[chosen]).sum(axis=1)
        found[name] = {f"{n}": 100 * float((n_bits <= n).mean()) for n in BITS}
        print(f"  {name:<20}", "  ".join(f"{n} bits {value:.0f}" for n, value in found[name].items()))
    false_pairs = dict.fromkeys(map(str, BITS), 0)
    for row in range(1, len(hashes)):
        n_bits = np.bitwise_count(hashes[row] ^ hashes[:row]).sum(axis=1)
        for n in BITS:
            false_pairs[f"{n}"] += int((n_bits <= n).sum())
    n_pairs = len(hashes) * (len(hashes) - 1) // 2
    print(f"pairs of different photos within n bits, of {n_pairs}:", false_pairs)
    keep("constants", {"near_copies": found, "false_pairs": false_pairs, "n_pairs": n_pairs})


if __name__ == "__main__":
    main()
