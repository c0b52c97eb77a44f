"""The plant-disease study's table on an installed backbone: six losses and cross-entropy, under two normalisations.

Each cell of configs/doctorp-stage2.yaml is trained at a size that fits an hour, then its backbone answers the protocol
(plain cosine, through the command line). Finished cells are kept in --out and not trained again. Epoch times compare
only where nothing else ran on the machine.

    python benchmarks/losses.py [--data DIR] [--out DIR]
"""

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from common import FEWSHOT, ROOT, data_folder, keep, run
from protocol import measure, without_statistics

LOSSES = ("cross-entropy", "contrastive", "triplet", "quadruplet", "sphereface", "cosface", "arcface")
NORMALISATIONS = ("imagenet", "dataset")
SIZE = {
    "backbone": "lite0",
    "image_size_px": "112",
    "photos_per_class_max": "40",
    "batch_size": "32",
    "epochs": "4",
}


def train(data: Path, out: Path) -> None:
    """Train every cell that is not trained yet."""
    for normalisation in NORMALISATIONS:
        for loss in LOSSES:
            chosen = {**SIZE, "loss": loss, "normalisation": normalisation}
            only = ",".join(f"{key}={value}" for key, value in chosen.items())
            if not results_file(out, loss, normalisation).exists():
                run(
                    FEWSHOT,
                    "train",
                    ROOT / "configs/doctorp-stage2.yaml",
                    "--data",
                    data,
                    "--out",
                    out,
                    "--only",
                    only,
                )
            print(f"trained {loss}, {normalisation}", flush=True)


def results_file(out: Path, loss: str, normalisation: str) -> Path:
    """Where a cell's figures are: in the folder that it has in the whole grid."""
    cell = f"backbone-{SIZE['backbone']}_loss-{loss}_normalisation-{normalisation}"
    return out / "doctorp-stage2" / cell / "results.json"


def protocol_sets(data: Path, trained: Path, name: str) -> dict[str, Any]:
    """The protocol's figures of a trained backbone, measured once and kept beside it."""
    kept = trained / "protocol.json"
    if not kept.exists():
        with tempfile.TemporaryDirectory() as folder:
            backbone = without_statistics(trained, Path(folder) / name)
            options = ["--backbone", str(backbone), "--precision", "f32"]
            kept.write_text(json.dumps(measure(data, Path(folder) / "index", options, field=False)))
    return dict(json.loads(kept.read_text()))


def cell(data: Path, out: Path, loss: str, normalisation: str) -> dict[str, Any]:
    """One row of the table."""
    file = results_file(out, loss, normalisation)
    results = json.loads(file.read_text())
    sets = protocol_sets(data, file.parent, f"{loss}-{normalisation}")
    return {
        "loss": loss,
        "normalisation": normalisation,
        "head": 100 * results["test"]["accuracy"]["share"],
        "epoch_seconds": [epoch["seconds"] for epoch in results["backbone_epochs"]],
        **{name: sets[name]["top1"] for name in ("base", "novel", "hard")},
    }


def main() -> None:
    """Train, measure, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--out", type=Path, default=Path("runs/losses"))
    given = parser.parse_args()
    data = data_folder(given.data)
    train(data, given.out)
    rows = [cell(data, given.out, loss, normalisation) for loss in LOSSES for normalisation in NORMALISATIONS]
    print(f"{'':26}{'head':>6}{'epoch s':>9}{'base':>7}{'novel':>7}{'hard':>7}")
    for row in rows:
        shown = f"{row['loss']}, {row['normalisation']}"
        print(
            f"{shown:26}{row['head']:6.1f}{median(row['epoch_seconds']):9.1f}"
            f"{row['base']:7.1f}{row['novel']:7.1f}{row['hard']:7.1f}"
        )
    keep("losses", {"size": SIZE, "cells": rows})


if __name__ == "__main__":
    main()
