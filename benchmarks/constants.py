"""How the numbers in the code were chosen: softmax scale, rejected part, near-copy similarity. Reads base/train only.

    python benchmarks/constants.py [--data DIR]

Each of the 35 base classes gives its first 20 photos as support and the others as queries; for the rejection, every
fifth class is left out of the index in turn and its queries are the unknown ones.
"""

import argparse
import io
from pathlib import Path

import numpy as np
from common import data_folder, keep
from PIL import Image

from fewshot import images
from fewshot.classifier import class_prototypes, own_similarities
from fewshot.datasets import class_folders
from fewshot.embedder import EmbeddedPhoto, Embedder, EmbedderChoice, open_embedder
from fewshot.records import NamedBytes

N_SUPPORT = 20
N_COPIED = 200
BITS = (4, 6, 8, 10, 12, 16)


def embed(embedder: Embedder, photos: list[Path | NamedBytes]) -> np.ndarray:
    """(n, dim) embeddings; every photo must be readable."""
    outcomes = list(embedder.embed_photos(photos, n_photos=len(photos)))
    return np.stack([outcome.embedding for outcome in outcomes if isinstance(outcome, EmbeddedPhoto)])


def softmax_scale(scores: np.ndarray, truth: np.ndarray) -> dict[float, dict[str, float]]:
    """Mean negative log-likelihood and calibration error (15 bins) of the true class at several scales."""
    table = {}
    for scale in (16.0, 24.0, 32.0, 40.0, 44.0, 48.0, 52.0, 56.0, 64.0):
        logits = scale * scores
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        best, right = shares.max(axis=1), shares.argmax(axis=1) == truth
        bins = np.minimum((best * 15).astype(int), 14)
        error = sum(abs(best[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in set(bins))
        table[scale] = {"nll": float(-np.log(shares[np.arange(len(truth)), truth]).mean()), "ece": float(error)}
    return table


def rejection(
    support: np.ndarray, support_class: np.ndarray, query: np.ndarray, query_class: np.ndarray, n_way: int
) -> dict[float, dict[str, float]]:
    """Percent of known and of unknown queries called unknown, by rejected part, over five foldings of the classes."""
    table: dict[float, dict[str, float]] = {}
    for part in (0.01, 0.02, 0.05, 0.1, 0.2):
        known_rejected, unknown_rejected = [], []
        for fold in range(5):
            inside = np.array([c for c in range(n_way) if c % 5 != fold])
            keep_rows = np.isin(support_class, inside)
            index = np.searchsorted(inside, support_class[keep_rows])
            prototypes = class_prototypes(support[keep_rows], index, len(inside))
            own = np.concatenate([own_similarities(support[support_class == c]) for c in inside])
            threshold = np.sort(own)[int(part * (len(own) - 1))]
            rejected = (query @ prototypes.T).max(axis=1) < threshold
            is_known = np.isin(query_class, inside)
            known_rejected.append(rejected[is_known].mean())
            unknown_rejected.append(rejected[~is_known].mean())
        table[part] = {"known": 100 * float(np.mean(known_rejected)), "unknown": 100 * float(np.mean(unknown_rejected))}
    return table


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
    embedder = open_embedder(EmbedderChoice(precision="f32"))
    photos = [photo for folder in folders for photo in folder.photos]
    class_index = np.repeat(np.arange(len(folders)), [len(folder.photos) for folder in folders])
    place = np.concatenate([np.arange(len(folder.photos)) for folder in folders])
    vectors = embed(embedder, list(photos))
    is_support = place < N_SUPPORT
    support, query = vectors[is_support], vectors[~is_support]
    prototypes = class_prototypes(support, class_index[is_support], len(folders))
    result = {
        "softmax_scale": softmax_scale(query @ prototypes.T, class_index[~is_support]),
        "rejected_part": rejection(support, class_index[is_support], query, class_index[~is_support], len(folders)),
    }
    for name, table in result.items():
        print(name)
        for key, row in table.items():
            print(f"  {key:<6}", "  ".join(f"{what} {value:.3f}" for what, value in row.items()))

    chosen = np.random.default_rng(0).choice(len(photos), N_COPIED, replace=False)
    hashes = difference_hashes(list(photos))
    chosen = np.random.default_rng(0).choice(len(photos), N_COPIED, replace=False)
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
    keep("constants", {**result, "near_copies": found, "false_pairs": false_pairs, "n_pairs": n_pairs})


if __name__ == "__main__":
    main()
