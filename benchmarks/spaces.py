"""What the pictures of the space show, and what they cost: the figures of docs/projection.md.

The protocol's gallery is drawn with the shipped backbone and with frozen ImageNet. Then photos get wrong labels, five
at a time, and `fewshot project` is asked which look mislabelled. Last, an index of 100,000 made-up photos is drawn.

    python benchmarks/spaces.py [--data DIR] [--draws N] [--only pictures|labels|large]
"""

import argparse
import csv
import json
import os
import random
import shutil
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from common import FEWSHOT, KIB_MB, ROOT, Run, data_folder, fewshot, json_lines, keep_part, run
from PIL import Image
from protocol import N_BASE_SUPPORTS, link_first
from speed import fill_index

from fewshot import images
from fewshot.embedder import EmbedderChoice, open_embedder
from fewshot.samples import write_samples

BACKBONES = ("lite0", "plants-lite0")
PICTURES = ROOT / "docs" / "pictures"
N_WRONG = 5
LARGE_CLASSES, LARGE_EACH = 1000, 100
PALETTE_COLOURS = 256  # a figure of a few hues needs no more, and is half the size


def build(data: Path, index: Path, backbone: str) -> None:
    """The protocol's gallery: 20 photos of each base class, all support photos of the novel ones."""
    with tempfile.TemporaryDirectory() as folder:
        base = link_first(data / "base" / "train", Path(folder) / "base", N_BASE_SUPPORTS)
        fewshot("enroll", "--each", base, "--backbone", backbone, "--precision", "f32", index=index)
    fewshot("enroll", "--each", data / "novel" / "support", index=index)


def measured(*command: str | Path) -> tuple[Run, dict[str, Any]]:
    """Run a command; its wall and CPU time, and the most memory that it and its processes held together."""
    most, done = 0.0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.3):
            most = max(most, _memory_mb(os.getpid()))

    load = os.getloadavg()[0]
    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        finished = run(*command)
    finally:
        done.set()
        watcher.join()
    return finished, {"wall_s": finished.wall_s, "cpu_s": finished.cpu_s, "peak_mb": most, "load_before": load}


def _memory_mb(root: int) -> float:
    """Resident memory of all processes below one, pages that they share counted once."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:  # it has ended meanwhile
                continue
    below, total = {root}, 0.0
    for _ in range(8):
        below |= {pid for pid, parent in parents.items() if parent in below}
    for pid in below - {root}:
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += next((int(line.split()[1]) * KIB_MB for line in lines if line.startswith("Pss:")), 0.0)
    return total


def pictures(data: Path, work: Path) -> dict[str, Any]:
    """Draw the gallery alone and both spaces side by side; the pictures go into the documentation."""
    for backbone in BACKBONES:
        build(data, work / backbone, backbone)
    _, alone = measured(FEWSHOT, "project", "--index", work / "plants-lite0", "--out", work / "alone")
    done, _ = measured(
        FEWSHOT, "project", "--compare", *(work / name for name in BACKBONES), "--out", work / "both", "--json"
    )
    PICTURES.mkdir(exist_ok=True)
    for name in ("umap-2d", "tsne-2d", "pca-2d", "confusion"):
        with Image.open(work / "both" / "figures" / f"{name}.png") as picture:
            # By coverage, which keeps the few hues as they are; the median cut would mix them.
            small = picture.convert("RGB").quantize(PALETTE_COLOURS, Image.Quantize.MAXCOVERAGE)
            small.save(PICTURES / f"{name}.png", optimize=True)
    (facts,) = json_lines(done.stdout)
    keys = ("name", "photos", "silhouette", "neighbour_agreement", "class_agreement", "trustworthiness")
    spaces = [{key: space[key] for key in keys} for space in facts["spaces"]]
    novel = {folder.name for folder in (data / "novel" / "support").iterdir()}
    for space in spaces:
        space |= _agreement(work / "both" / "coordinates.csv", space["name"], novel)
    return {"cost": alone, "spaces": spaces, "shared_neighbours": facts["shared_neighbours"]}


def _agreement(coordinates: Path, space: str, novel: set[str]) -> dict[str, float]:
    """The share of photos whose nearest class is their own: of classes that were trained on, and of novel ones."""
    with coordinates.open(newline="") as stream:
        rows = [row for row in csv.DictReader(stream) if row["space"] == space and row["role"] == "support"]
    found = {}
    for name, part in (
        ("class_agreement_trained", [row for row in rows if row["label"] not in novel]),
        ("class_agreement_novel", [row for row in rows if row["label"] in novel]),
    ):
        found[name] = round(sum(row["agrees"] == "true" for row in part) / len(part), 4)
    return found


def wrong_labels(data: Path, work: Path, n_draws: int) -> dict[str, Any]:
    """Give five photos a wrong label, in a copy of the gallery, and see which of them are named; so many times."""
    found: dict[str, Any] = {}
    for backbone in BACKBONES:
        index = work / backbone
        if not index.exists():
            build(data, index, backbone)
        before = {(each["label"], each["file"]) for each in _suspicious(index)}
        rows = [_draw(data, index, work / "wrong", before, random.Random(draw)) for draw in range(n_draws)]
        found[backbone] = {"suspicious_before": len(before), "draws": rows}
    return {"n_wrong": N_WRONG, "backbones": found}


def _draw(data: Path, index: Path, copy: Path, before: set[tuple[str, str]], rng: random.Random) -> dict[str, Any]:
    """One copy with five photos moved, each from a class of its own into another that none comes from."""
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(index, copy / "index")
    novel = {each.name: each for each in (data / "novel" / "support").iterdir()}
    folders = {each.name: each for each in (data / "base" / "train").iterdir()} | novel
    touched = rng.sample(sorted(folders), 2 * N_WRONG)
    moves = list(zip(touched[:N_WRONG], touched[N_WRONG:], strict=True))
    for label in touched:
        (copy / "photos" / label).mkdir(parents=True)
        for photo in sorted(folders[label].iterdir())[: None if label in novel else N_BASE_SUPPORTS]:
            (copy / "photos" / label / photo.name).symlink_to(photo.resolve())
    planted = []
    for source, target in moves:
        photo = rng.choice(sorted((copy / "photos" / source).iterdir()))
        name = f"moved-{source}-{photo.name}"
        photo.rename(copy / "photos" / target / name)
        planted.append((target, name, source))
    for label in touched:
        fewshot("remove", label, index=copy / "index")
    fewshot("enroll", "--each", copy / "photos", index=copy / "index")
    ranked = [(each["label"], each["file"]) for each in _suspicious(copy / "index")]
    ranks = [ranked.index(key[:2]) + 1 if key[:2] in ranked else None for key in planted]
    named = {(each["label"], each["file"]): each["looks_like"] for each in _suspicious(copy / "index")}
    return {
        "found": sum(rank is not None for rank in ranks),
        "ranks": ranks,
        "right_class_named": sum(named.get(key[:2]) == key[2] for key in planted),
        "from_novel_class": sum(source in novel for source, _ in moves),
        "found_from_novel_class": sum(
            rank is not None and source in novel for rank, (source, _) in zip(ranks, moves, strict=True)
        ),
        "others_named": len(set(ranked) - {key[:2] for key in planted}),
        "new_others_named": len(set(ranked) - {key[:2] for key in planted} - before),
    }


def _suspicious(index: Path) -> list[dict[str, Any]]:
    """The photos that look mislabelled, the clearest first: what `fewshot inspect` and the report's table list."""
    rows = [
        {"label": each["label"], **photo}
        for each in json_lines(fewshot("inspect", index=index).stdout)
        for photo in each["suspicious"]
    ]
    return sorted(rows, key=lambda row: row["own_similarity"] - row["similarity"])


def large(work: Path) -> dict[str, Any]:
    """Draw an index of 100,000 made-up photos."""
    (leaf, *_) = write_samples(work / "leaf", n_support=1, n_query=1, seed=0)
    image, _ = images.decode(leaf.read_bytes(), leaf.name, images.THUMBNAIL_SIDE_PX)
    embedder = open_embedder(EmbedderChoice("lite0", "f32"))
    fill_index(work / "large", LARGE_CLASSES, embedder, LARGE_EACH, images.thumbnail(image))
    done, cost = measured(FEWSHOT, "project", "--index", work / "large", "--out", work / "large-out", "--json")
    (facts,) = json_lines(done.stdout)
    size = sum(file.stat().st_size for file in (work / "large-out").rglob("*") if file.is_file()) / 1e6
    drawn = facts["spaces"][0]["drawn"]
    return {"supports": LARGE_CLASSES * LARGE_EACH, "dim": embedder.dim, "drawn": drawn, "written_mb": size, **cost}


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--only", choices=["pictures", "labels", "large"], action="append")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as folder:
        work = Path(folder)
        started = time.perf_counter()
        for name, measure in (
            ("pictures", lambda: pictures(data_folder(given.data), work)),
            ("labels", lambda: wrong_labels(data_folder(given.data), work, given.draws)),
            ("large", lambda: large(work)),
        ):
            if not given.only or name in given.only:
                part = measure()
                seconds = time.perf_counter() - started
                print(f"{name} ({seconds:.0f} s so far)\n{json.dumps(part, indent=1)}", flush=True)
                keep_part("spaces", name, part)


if __name__ == "__main__":
    main()
