"""Bulk query and enrolment, each against a rival or a limit in the same run.

    python benchmarks/speed.py [--data DIR] [--runs 5]

Every pair is run in turn, after one uncounted run, and the medians are compared; whole processes are timed.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from statistics import median

import numpy as np
from common import Run, data_folder, fewshot, json_lines, keep, pairs, run, wall

from fewshot.classifier import prototypes
from fewshot.embedder import Embedder, EmbedderChoice, open_embedder
from fewshot.engines import native_precision
from fewshot.records import EmbeddedPhoto
from fewshot.store import Store

N_PHOTOS = 500
SUPPORTS_A_CLASS = 5


def bulk(data: Path, index: Path, work: Path, n: int) -> dict[str, object]:
    """500 photos through `fewshot query FOLDER` against the plain script."""
    photos = work / "photos"
    photos.mkdir()
    for number, photo in enumerate(sorted((data / "novel" / "query").rglob("*.jpg"))[:N_PHOTOS]):
        (photos / f"{number:04d}-{photo.parent.name}.jpg").symlink_to(photo.resolve())
    weights = work / "lite0.safetensors"
    save_weights(weights)
    script = Path(__file__).with_name("plain_script.py")
    support = data / "novel" / "support"
    ours, plain = pairs(
        n,
        lambda: fewshot("query", photos, index=index),
        lambda: run(sys.executable, script, weights, support, photos),
    )
    n_photos = len(list(photos.iterdir()))
    inside = [json.loads(one.stdout.splitlines()[-1]) for one in plain]
    # Both from the start of the process to the last answer; the script must enroll first, which is taken off.
    plain_s = median(one.wall_s - own["enroll_s"] for one, own in zip(plain, inside, strict=True))
    start_s = median(fewshot("query", next(photos.iterdir()), index=index).wall_s for _ in range(n))
    ours_steady = (n_photos - 1) / (wall(ours) - start_s)
    plain_steady = n_photos / median(own["answer_s"] for own in inside)
    truth = [photo.stem.split("-", 1)[1] for photo in sorted(photos.iterdir())]
    our_labels = [line["matches"][0]["label"] for line in json_lines(ours[0].stdout)]
    plain_labels = plain[0].stdout.splitlines()[:-1]
    return {
        "n_photos": n_photos,
        "precision": native_precision(),
        "ours_images_per_s": n_photos / wall(ours),
        "plain_images_per_s": n_photos / plain_s,
        "ratio": plain_s / wall(ours),
        "ours_steady_images_per_s": ours_steady,
        "plain_steady_images_per_s": plain_steady,
        "steady_ratio": ours_steady / plain_steady,
        "ours_top1": _accuracy(our_labels, truth),
        "plain_top1": _accuracy(plain_labels, truth),
        "ours_peak_mb": max(one.peak_mb for one in ours),
        "plain_peak_mb": max(one.peak_mb for one in plain),
    }


def enrolment(data: Path, work: Path, n: int) -> dict[str, object]:
    """Enrolling 20 photos as a new class into an index of 10,000 classes against one of 10."""
    label = "strawberry-healthy"
    folder = data / "novel" / "support" / label
    embedder = open_embedder(EmbedderChoice())
    indexes = {n_classes: work / f"classes-{n_classes}" for n_classes in (10, 10_000)}
    for n_classes, index in indexes.items():
        fill_index(index, n_classes, embedder)
        fewshot("query", next(folder.iterdir()), index=index)  # leaves the caches as a used index has them

    def enroll(index: Path) -> Run:
        done = fewshot("enroll", label, folder, index=index)
        assert json_lines(done.stdout)[0]["enrolled"] == 20, done.stdout
        fewshot("remove", label, index=index)
        return done

    large, small = pairs(n, lambda: enroll(indexes[10_000]), lambda: enroll(indexes[10]))
    return {
        "into_10_classes_s": wall(small),
        "into_10000_classes_s": wall(large),
        "ratio": wall(large) / wall(small),
        "supports_a_class": SUPPORTS_A_CLASS,
    }


def fill_index(
    folder: Path, n_classes: int, embedder: Embedder, n_each: int = SUPPORTS_A_CLASS, thumbnail: bytes | None = None
) -> None:
    """An index of made-up classes: random directions, each class a narrow cone of `n_each` photos."""
    rng = np.random.default_rng(n_classes)
    store = Store(folder, create=True)
    with store.write() as writer:
        writer.pin_embedder(embedder.facts())
        for c in range(n_classes):
            rows = rng.normal(size=embedder.dim) + 0.7 * rng.normal(size=(n_each, embedder.dim))
            vectors = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
            photos = [
                EmbeddedPhoto(f"{i}.jpg", f"{c:032x}{i:032x}", 256, 256, vectors[i], thumbnail, rng.bytes(16))
                for i in range(n_each)
            ]
            class_id = writer.add_class(f"class-{c:05d}")
            ids = writer.add_supports(class_id, photos)
            writer.set_prototypes(class_id, prototypes.class_prototypes(vectors, np.zeros(len(ids), np.int64), 1))
            writer.set_own_similarities(np.array(ids), prototypes.own_similarities(vectors), np.arange(len(ids)))
        writer.note("enroll", None, n_supports=n_classes * n_each)
    store.close()


def save_weights(path: Path) -> None:
    """lite0's weights under timm's names, written by another process so that this one stays small: what a process
    holds when it starts a command counts as that command's memory.
    """
    code = (
        "import sys; from safetensors.torch import save_file; "
        "from fewshot.backbones import resolve; from fewshot.networks import load; "
        "state = load(resolve('lite0'))[1].state_dict(); "
        "save_file({name: tensor.contiguous() for name, tensor in state.items()}, sys.argv[1])"
    )
    run(sys.executable, "-c", code, path)


def _accuracy(labels: list[str], truth: list[str]) -> float:
    return 100 * sum(a == b for a, b in zip(labels, truth, strict=True)) / len(truth)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    data = data_folder(given.data)
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        index = work / "index"
        fewshot("enroll", "--each", data / "novel" / "support", index=index)
        result = {
            "bulk": bulk(data, index, work, given.runs),
            "enrolment": enrolment(data, work, given.runs),
        }
        shutil.rmtree(work / "classes-10000")
    for name, figures in result.items():
        print(name)
        for what, value in figures.items():
            print(f"  {what:28} {value:.3f}" if isinstance(value, float) else f"  {what:28} {value}")
    keep("speed", {**result, "n_runs": given.runs})


if __name__ == "__main__":
    main()
