"""How long an epoch of each of the six losses takes, against cross-entropy: same backbone, same photos, same process.

One batch of each loss is trained in turn, so that all meet the same machine; what an epoch takes is the number of its
batches, which is the same for all, times the median batch. Mining, projection and class vectors are in it; decoding is
not, as photos are decoded once, before the first epoch.

    python benchmarks/epoch_times.py [--data DIR] [--rounds N]
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from common import data_folder, keep
from losses import LOSSES

from fewshot.memory import keep_freed_memory
from fewshot.recipes import resolve
from fewshot.training.backbone_phase import BackbonePhase
from fewshot.training.batches import n_batches
from fewshot.training.photos import DecodedPhotos, read_split
from fewshot.training.processes import Processes
from fewshot.training.runs import prepare

SIZE: dict[str, Any] = {
    "train_folder": "base/train",
    "test_share": 0.0,
    "backbone": "lite0",
    "image_size_px": 112,
    "photos_per_class_max": 10,
    "batch_size": 64,
    "photos_per_class": 4,
}
WARM_UP = 2


def main() -> None:
    """Time, print a table, keep the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data")
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args()
    data = data_folder(given.data)
    keep_freed_memory()  # as `fewshot train` does
    phases = {}
    decoded = DecodedPhotos()
    device = torch.device("cpu")
    with tempfile.TemporaryDirectory() as folder:
        for loss in LOSSES:
            recipe = resolve({**SIZE, "loss": loss})
            split = read_split(recipe, data)
            trainee, prepared = prepare(recipe, split, decoded)
            phases[loss] = BackbonePhase(recipe, trainee, prepared, Path(folder) / loss, loss, Processes(device=device))
            trainee.network.train()
    seconds: dict[str, list[float]] = {loss: [] for loss in LOSSES}
    rng = np.random.default_rng(0)
    waiting = {loss: iter(()) for loss in LOSSES}
    for number in range(WARM_UP + given.rounds):
        # Another loss begins each round: what runs first after another network may find a colder cache.
        for loss in [*LOSSES[number % len(LOSSES) :], *LOSSES[: number % len(LOSSES)]]:
            rows = next(waiting[loss], None)
            if rows is None:
                waiting[loss] = phases[loss].batches(rng)
                rows = next(waiting[loss])
            started = time.perf_counter()
            phases[loss].step(rows, rng)
            if number >= WARM_UP:
                seconds[loss].append(time.perf_counter() - started)
    n_photos, n = len(split.train), n_batches(len(split.train), SIZE["batch_size"])
    base = np.array(seconds["cross-entropy"])
    cells = []
    print(f"{n_photos} photos, {n} batches an epoch")
    for loss in LOSSES:
        ratio = float(np.median(np.array(seconds[loss]) / base))
        cells.append({"loss": loss, "epoch_s": n * median(seconds[loss]), "ratio": ratio})
        print(f"{loss:14} {cells[-1]['epoch_s']:7.2f} s  {ratio:.3f} x cross-entropy")
    keep("epoch-times", {"size": SIZE, "rounds": given.rounds, "n_photos": n_photos, "n_batches": n, "cells": cells})


if __name__ == "__main__":
    main()
