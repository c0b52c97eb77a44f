"""What test_training_processes.py lets torchrun start twice: the same trainings in each process, one after the other.

    torchrun --nproc-per-node 2 train_together.py FOLDER

Each process leaves FOLDER/RANK.json: of each training how many reports it got, or the error that it met.
"""

import json
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from fewshot.errors import FewshotError
from fewshot.training import report, runs
from fewshot.training.backbone_phase import BackbonePhase
from fewshot.training.processes import Processes, joined


def main(folder: Path, processes: Processes) -> None:
    found: dict[str, int | str] = {}

    def train(name: str, recipe: str, out: str, data: str = "data") -> None:
        try:
            found[name] = len(runs.train(folder / f"{recipe}.yaml", folder / data, folder / out))
        except FewshotError as error:
            found[name] = error.said

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "_write_curves", lambda report, file: None)
        patch.setattr(runs, "write_portable", lambda folder: None)
        patch.setattr(runs, "joined", lambda: nullcontext(processes))
        train("vectors", "vectors", "two")
        train("pairs", "pairs", "two")
        train("grounds", "grounds", "two")
        with pytest.MonkeyPatch.context() as stopping:
            stopping.setattr(BackbonePhase, "_train_epoch", stopped_in_epoch_2(BackbonePhase._train_epoch))
            train("stopped", "vectors", "resumed")
        train("resumed", "vectors", "resumed")
        train("few", "few", "few")
        train("other photos", "vectors", "other", "data" if processes.is_first else "less")
    (folder / f"{processes.rank}.json").write_text(json.dumps(found))


def stopped_in_epoch_2(train_epoch: Any) -> Any:
    """The training of an epoch, but Ctrl-C comes in the second."""

    def until_then(phase: BackbonePhase, epoch: int, *rest: Any) -> None:
        if epoch == 2:
            raise KeyboardInterrupt
        train_epoch(phase, epoch, *rest)

    return until_then


if __name__ == "__main__":
    with joined() as these:
        main(Path(sys.argv[1]), these)
