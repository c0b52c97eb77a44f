"""The second part of a training: two linear layers on the finished backbone's embeddings."""

import math
import time
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional

from fewshot.errors import NotFiniteError
from fewshot.recipes import Recipe
from fewshot.records import Float32s, Int64s
from fewshot.training.batches import n_batches, shuffled_batches
from fewshot.training.networks import Head, first_not_finite
from fewshot.training.progress import Clock, EpochRow, OnProgress, Progress, Scores, best_row, logit_scores


@dataclass(frozen=True, slots=True)
class Features:
    """The embeddings of one set of photos, as the backbone gives them, with their classes."""

    embeddings: Float32s
    class_index: Int64s


def train_head(
    recipe: Recipe,
    train: Features,
    validation: Features,
    test: Features,
    labels: tuple[str, ...],
    cell: str,
    on_progress: OnProgress,
) -> tuple[Head, list[EpochRow]]:
    """A classifier on cached embeddings: the backbone does not learn, so each photo passes through it once.

    Adam and cross-entropy, as the studies did. It takes seconds, so a stopped run does it again from its seed.

    Raises:
        NotFiniteError: the loss became NaN or infinite.
    """
    rng = np.random.default_rng([recipe.seed, 1_000_000])
    torch.manual_seed(int(rng.integers(2**31)))
    head = Head(train.embeddings.shape[1], recipe.head_width, len(labels), recipe.head_dropout)
    optimiser = torch.optim.Adam(head.parameters(), lr=recipe.head_learning_rate)
    embeddings, true = torch.from_numpy(train.embeddings), torch.from_numpy(train.class_index)
    per_epoch = n_batches(len(true), recipe.head_batch_size)
    clock = Clock(per_epoch * recipe.head_epochs)
    lower = f"Lower head_learning_rate (it is {recipe.head_learning_rate:g})."
    rows: list[EpochRow] = []
    best: dict[str, torch.Tensor] = {}
    for epoch in range(1, recipe.head_epochs + 1):
        started, total = time.monotonic(), 0.0
        head.train()
        for number, batch in enumerate(shuffled_batches(len(true), recipe.head_batch_size, rng)):
            loss = functional.cross_entropy(head(embeddings[batch]), true[batch])
            value = float(loss.detach())
            if not math.isfinite(value):
                raise NotFiniteError(
                    f"the head's loss became {value} in epoch {epoch}, batch {number + 1}.", hint=lower
                )
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            total += value * len(batch)
            on_progress(Progress(cell, "head", epoch, recipe.head_epochs, number + 1, per_epoch, value, clock.tick()))
        seconds = time.monotonic() - started
        if name := first_not_finite(head):  # which the last step may have done, after its loss
            raise NotFiniteError(f"the head's {name} became NaN or infinite in epoch {epoch}.", hint=lower)
        learned = replace(_scores(head, train, labels), loss=total / len(true))
        watched = _scores(head, validation, labels) if len(validation.class_index) else None
        rows.append(EpochRow(epoch, seconds, learned, watched, _scores(head, test, labels)))
        if recipe.keep == "best" and best_row(rows) is rows[-1]:
            best = {name: tensor.clone() for name, tensor in head.state_dict().items()}
    if best:
        head.load_state_dict(best)
    head.eval()
    return head, rows


@torch.no_grad()
def head_logits(head: Head, embeddings: Float32s) -> Float32s:
    """(n, dim) embeddings, any length -> (n, n_classes) logits."""
    head.eval()
    logits: Float32s = head(torch.from_numpy(embeddings)).numpy()
    return logits


def _scores(head: Head, features: Features, labels: tuple[str, ...]) -> Scores:
    if len(features.class_index) == 0:
        return Scores()
    return logit_scores(head_logits(head, features.embeddings), features.class_index, labels)
