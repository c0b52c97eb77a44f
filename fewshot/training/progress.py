"""What a training says of itself while it runs, and what it leaves to read: one row an epoch."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fewshot.evaluation.metrics import measure
from fewshot.records import Float32s, Int64s


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a training stands: shown by the caller, who decides how."""

    cell: str
    phase: str  # "backbone" or "head"
    epoch: int  # from 1
    n_epochs: int
    batch: int  # from 1
    n_batches: int
    loss: float
    seconds_left: float | None  # of this phase; None in its first batches


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Scores:
    """One epoch on one set of photos. None where a loss has no classifier of its own; shares in [0, 1]."""

    loss: float | None = None
    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One epoch: its training time in seconds (without the tests between epochs), and its scores."""

    epoch: int  # from 1
    seconds: float
    train: Scores
    validation: Scores | None
    test: Scores

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; `row_from_dict` reads it back."""
        return asdict(self)

    @property
    def watched(self) -> float:
        """The accuracy by which an epoch is chosen: on the validation photos, or the test's where there are none."""
        accuracy = (self.validation or self.test).accuracy
        return -1.0 if accuracy is None else accuracy


def row_from_dict(facts: dict[str, Any]) -> EpochRow:
    """The row that `EpochRow.as_dict` described."""
    validation = facts["validation"]
    return EpochRow(
        facts["epoch"],
        facts["seconds"],
        Scores(**facts["train"]),
        None if validation is None else Scores(**validation),
        Scores(**facts["test"]),
    )


def best_row(rows: Sequence[EpochRow]) -> EpochRow:
    """The first epoch of the highest watched accuracy."""
    return max(rows, key=lambda row: (row.watched, -row.epoch))


def logit_scores(logits: Float32s, true: Int64s, labels: Sequence[str], loss: float | None = None) -> Scores:
    """Scores of logits, with their plain cross-entropy unless a `loss` is given."""
    if len(true) == 0:
        return Scores()
    if loss is None:
        loss = float(functional.cross_entropy(torch.from_numpy(logits), torch.from_numpy(true)))
    metrics = measure(true, logits.argmax(axis=1).astype(np.int64), labels)
    return Scores(loss, metrics.accuracy.share, metrics.precision, metrics.recall, metrics.f1)


class Clock:
    """Seconds that a phase has left, from the batches it has done in this process."""

    def __init__(self, n_to_do: int) -> None:
        self._started, self._n_to_do, self._n_done = time.monotonic(), n_to_do, 0

    def tick(self) -> float | None:
        """Count one batch; the estimate needs three."""
        self._n_done += 1
        if self._n_done < 3:
            return None
        return (time.monotonic() - self._started) / self._n_done * (self._n_to_do - self._n_done)
