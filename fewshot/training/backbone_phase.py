"""The first part of a training: the backbone, with one of the metric losses."""

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from fewshot.errors import NotFiniteError, TooFewPhotosError
from fewshot.losses import MetricLoss, build_loss
from fewshot.recipes import Recipe
from fewshot.records import Float32s, Int64s, Pixels
from fewshot.training import checkpoints
from fewshot.training.batches import (
    changed,
    class_batches,
    drawn_changes,
    drawn_partners,
    n_batches,
    shuffled_batches,
)
from fewshot.training.checkpoints import Checkpoint, with_prefix, without_prefix
from fewshot.training.grounds import Grounds
from fewshot.training.networks import (
    Projection,
    Trainee,
    first_not_finite,
    interpolate,
    parameter_groups,
    prototypes,
    training_mode,
    training_size_px,
    unit_rows,
)
from fewshot.training.photos import Split, first_rows
from fewshot.training.processes import Processes
from fewshot.training.progress import (
    Clock,
    EpochRow,
    OnProgress,
    Progress,
    Scores,
    best_row,
    logit_scores,
    row_from_dict,
)
from fewshot.training.teachers import Follower, Teachers, apart

N_SHOT = 20  # photos of a class in its prototype, wherever a training reports nearest-prototype accuracy
_NOTHING = Scores()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A split in memory: training photos as decoded, and the plain view (as in use) of every set; and any teachers."""

    split: Split
    decoded: list[Pixels]
    grounds: Grounds | None
    train: Pixels
    validation: Pixels
    test: Pixels
    teachers: tuple[Trainee, ...] = ()


class BackbonePhase:
    """Trains a backbone epoch by epoch, resumable after each.

    Args:
        recipe: the settings.
        trainee: the backbone, with its first weights; trained in place.
        prepared: the photos.
        folder: where checkpoints go.
        cell: how progress calls this training.
        processes: who shares the work; every one of them goes through this phase.
    """

    def __init__(
        self, recipe: Recipe, trainee: Trainee, prepared: Prepared, folder: Path, cell: str, processes: Processes
    ) -> None:
        self.recipe, self.trainee, self.prepared, self.folder = recipe, trainee, prepared, folder
        self.cell, self.processes, self.device = cell, processes, processes.device
        device = self.device
        self.rows: list[EpochRow] = []
        labels = prepared.split.train.labels
        torch.manual_seed(_seed(recipe.seed, 0))
        self.projection: nn.Module = nn.Identity()
        dim = trainee.dim
        if recipe.projection_dim:
            dim = recipe.projection_dim
            self.projection = Projection(trainee.dim, dim)
        self.loss: MetricLoss = build_loss(recipe.loss, n_classes=len(labels), dim=dim, **recipe.loss_settings)
        trainee.to(device)
        self._pretrained: dict[str, torch.Tensor] = {}
        if recipe.interpolation < 1:
            self._pretrained = {name: tensor.clone() for name, tensor in trainee.network.state_dict().items()}
        self.teachers = Teachers(prepared.teachers, prepared.train, processes) if prepared.teachers else None
        self.follower: nn.Module = nn.Identity()
        if recipe.prototype_start or self.teachers is not None:
            plain = torch.from_numpy(processes.embed(trainee, prepared.train)).to(device)
            if recipe.prototype_start:
                vectors = prototypes(plain, prepared.split.train.class_index, len(labels))
                self.loss.set_class_vectors(vectors.cpu())
            if self.teachers is not None:
                self.follower = Follower(plain, self.teachers.plain)
        self.projection.to(device)
        self.loss.to(device)
        self.optimiser = self._build_optimiser()
        # What the processes share: its gradients are averaged as they come.
        training_mode(recipe, trainee)
        self._forward = processes.parallel(_Forward(trainee, self.projection, self.follower))

    def run(self, on_progress: OnProgress) -> None:
        """Train to the last epoch, going on from the last whole one; then keep what the recipe keeps.

        Raises:
            NotFiniteError: the loss, a weight or an embedding became NaN or infinite; the checkpoint of the last good
                epoch stays.
            TrainingDiskFullError: a checkpoint cannot be written; the one before stays.
            TooFewPhotosError: there are more processes than photos in a batch.
        """
        self._resume()
        per_epoch = n_batches(len(self.prepared.split.train), self.recipe.batch_size)
        least = min(len(self.prepared.split.train) // per_epoch, self.recipe.batch_size)
        if least < self.processes.n:
            raise TooFewPhotosError(
                f"batches of {least} photos cannot be shared among {self.processes.n} processes.",
                hint="Raise batch_size, or start fewer processes.",
            )
        clock = Clock(per_epoch * (self.recipe.epochs - len(self.rows)))
        while len(self.rows) < self.recipe.epochs and not self._waited_enough():
            self._train_epoch(len(self.rows) + 1, per_epoch, clock, on_progress)
            # The best first: stopped between the two, the run trains this epoch again, to the same weights.
            if self.recipe.keep == "best" and best_row(self.rows) is self.rows[-1]:
                self._save("best")
            self._save("last")
        if self.recipe.keep == "best":
            self._load_weights("best")
        if self._pretrained:
            interpolate(self.trainee.network, self._pretrained, self.recipe.interpolation)

    def logits(self, embeddings: Float32s) -> Float32s | None:
        """(n, n_classes) logits of the loss's own classifier for embeddings; None for a loss that has none."""
        self.projection.eval()
        with torch.inference_mode():
            logits = self.loss.logits(self.projection(torch.from_numpy(embeddings).to(self.device)))
        return None if logits is None else logits.float().cpu().numpy()

    def _train_epoch(self, epoch: int, per_epoch: int, clock: Clock, on_progress: OnProgress) -> None:
        recipe, photos = self.recipe, self.prepared.split.train
        # Every epoch has its own seed, so that a resumed run draws what an unbroken one would have drawn.
        rng = np.random.default_rng([recipe.seed, epoch])
        torch.manual_seed(_seed(recipe.seed, epoch) + self.processes.rank)  # dropout differs from share to share
        training_mode(recipe, self.trainee)
        self.projection.train()
        losses, sizes, logits, true = [], [], [], []
        started = time.monotonic()
        for number, rows in enumerate(self.batches(rng)):
            self._set_rates((epoch - 1) + number / per_epoch)
            self.loss.at_step((epoch - 1) * per_epoch + number)
            value, seen = self.step(rows, rng)
            if not math.isfinite(value):
                what = f"the {recipe.loss} loss became {value} in epoch {epoch}, batch {number + 1}"
                raise self._not_finite(what)
            losses.append(value)
            sizes.append(len(rows))
            if seen is not None:
                logits.append(seen)
                true.append(photos.class_index[rows])
            on_progress(
                Progress(self.cell, "backbone", epoch, recipe.epochs, number + 1, per_epoch, value, clock.tick())
            )
        seconds = time.monotonic() - started
        # Each loss was computed before its step: what the last step did, only the weights tell.
        for owner, learner in self._learners.items():
            if name := first_not_finite(learner):
                shown = "backbone" if owner == "network" else owner
                raise self._not_finite(f"the {shown}'s {name} became NaN or infinite in epoch {epoch}")
        mean_loss = float(np.average(losses, weights=sizes))
        learned = Scores(loss=mean_loss)
        if logits:
            learned = logit_scores(np.concatenate(logits), np.concatenate(true), photos.labels, mean_loss)
        validation, test = self._scores()
        self.rows.append(EpochRow(epoch, seconds, learned, validation, test))

    def step(self, rows: Int64s, rng: np.random.Generator) -> tuple[float, Float32s | None]:
        """One batch forward and back: its loss, and the logits it was classified with, before the step."""
        recipe, n, processes = self.recipe, len(rows), self.processes
        grounds = self.prepared.grounds
        decoded = [self.prepared.decoded[row] for row in rows]
        new_grounds = grounds.drawn(rows, recipe.new_ground, rng) if grounds else []
        changes = drawn_changes(decoded, recipe, rng)
        # Chance decides for the whole batch, as in one process; each process then works on its share.
        mine = needed = processes.share(n)
        partner, share = np.arange(n), 1.0
        if recipe.mixup > 0:
            partner, share = drawn_partners(n, recipe.mixup, rng)
            needed = np.union1d(mine, partner[mine])
        if grounds:
            for i in needed:
                decoded[i] = grounds.behind(decoded[i], int(rows[i]), new_grounds[i], self.prepared.decoded)
        batch = changed(decoded, training_size_px(recipe, self.trainee), changes, needed)
        if recipe.mixup > 0:
            own, other = (np.searchsorted(needed, wanted) for wanted in (mine, partner[mine]))
            batch = torch.lerp(batch[other], batch[own], share)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=fast_bfloat16(self.device)):
            batch = batch.to(self.device)
            projected, followed = self._forward(batch)
            taught = None if self.teachers is None else self.teachers(batch)
        projected = processes.gathered(projected.float(), n)  # (n, dim): every process computes the loss of them all
        true = torch.from_numpy(self.prepared.split.train.class_index[rows]).to(self.device)
        loss = self.loss(projected, true)
        if recipe.mixup > 0:
            loss = share * loss + (1 - share) * self.loss(projected, true[torch.from_numpy(partner).to(self.device)])
        total = loss
        if taught is not None:
            rows_of_all = [processes.gathered(each.float(), n) for each in (*followed, taught)]
            total = loss + recipe.distillation * apart(*rows_of_all)
        if not torch.isfinite(total):
            return float(total.detach()), None
        with torch.no_grad():
            seen = self.loss.logits(projected)
        self.optimiser.zero_grad()
        # Gradients of the shares are averaged, and the gradient of the whole batch is their sum.
        (total * processes.n).backward()
        for parameter in self.loss.parameters():
            if parameter.grad is not None:  # of all rows already, in every process
                parameter.grad /= processes.n
        processes.averaged(list(self.loss.parameters()))
        self.optimiser.step()
        return float(loss.detach()), None if seen is None else seen.float().cpu().numpy()

    def batches(self, rng: np.random.Generator) -> Iterator[Int64s]:
        """An epoch's batches, as rows of the training photos; P x K ones for losses that compare photos."""
        photos = self.prepared.split.train
        if self.loss.compares_photos:
            return class_batches(photos.class_index, self.recipe.batch_size, self.recipe.photos_per_class, rng)
        return shuffled_batches(len(photos), self.recipe.batch_size, rng)

    def _scores(self) -> tuple[Scores | None, Scores]:
        """This epoch on the validation photos (None where there are none) and on the test photos."""
        split, prepared = self.prepared.split, self.prepared
        sets = [(split.validation, prepared.validation), (split.test, prepared.test)]
        means: torch.Tensor | None = None
        if self.loss.compares_photos:
            support = first_rows(split.train, N_SHOT)
            embedded = torch.from_numpy(self._embed(prepared.train[support]))
            means = prototypes(embedded, split.train.class_index[support], len(split.train.labels))
        found: list[Scores | None] = []
        for photos, pixels in sets:
            if len(photos) == 0:
                found.append(None)
                continue
            embeddings = self._embed(pixels)
            if means is not None:
                cosine = unit_rows(torch.from_numpy(embeddings)).numpy() @ means.numpy().T
                scores = logit_scores(cosine, photos.class_index, photos.labels)
                # A softmax over bare cosines is no loss that anything was trained with.
                found.append(replace(scores, loss=None))
            else:
                logits = self.logits(embeddings)
                assert logits is not None
                found.append(logit_scores(logits, photos.class_index, photos.labels))
        return found[0], found[1] or _NOTHING

    def _embed(self, pixels: Pixels) -> Float32s:
        """As `networks.embed`, after an epoch's last step; weights can be finite and too large for any photo."""
        embeddings = self.processes.embed(self.trainee, pixels)
        if not np.isfinite(embeddings).all():
            raise self._not_finite(f"the embeddings became NaN or infinite in epoch {len(self.rows) + 1}")
        return embeddings

    def _build_optimiser(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        rate = recipe.loss_learning_rate or recipe.learning_rate
        groups: list[dict[str, Any]] = [*parameter_groups(recipe, self.trainee)]
        own = [*self.projection.parameters(), *self.follower.parameters(), *self.loss.parameters()]
        if own:
            groups.append({"params": own, "lr": rate})
        self._rates = [float(group["lr"]) for group in groups]
        if recipe.optimiser == "sgd":
            return torch.optim.SGD(groups, momentum=0.9, nesterov=True, weight_decay=recipe.weight_decay)
        kind = torch.optim.AdamW if recipe.optimiser == "adamw" else torch.optim.Adam
        return kind(groups, weight_decay=recipe.weight_decay)

    def _set_rates(self, epochs_done: float) -> None:
        factor = rate_factor(self.recipe, epochs_done)
        for group, rate in zip(self.optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * factor

    def _waited_enough(self) -> bool:
        if not self.recipe.patience or not self.rows:
            return False
        return self.rows[-1].epoch - best_row(self.rows).epoch >= self.recipe.patience

    def _not_finite(self, what: str) -> NotFiniteError:
        kept = f"epoch {len(self.rows)} is kept in {self.folder}" if self.rows else "no epoch was finished"
        lower = "learning_rate" if self.recipe.scale is None else "learning_rate or scale"
        return NotFiniteError(
            f"{what}; {kept}.",
            hint=f"Lower {lower} (learning_rate is {self.recipe.learning_rate:g}), or raise warmup_epochs.",
        )

    @property
    def _learners(self) -> dict[str, nn.Module]:
        """All that has weights of its own, under the names that a checkpoint keeps them by."""
        owners = {"network": self.trainee.network, "loss": self.loss}
        return owners | {"projection": self.projection, "follower": self.follower}

    def _save(self, name: str) -> None:
        tensors: dict[str, torch.Tensor] = {}
        for owner, learner in self._learners.items():
            tensors |= with_prefix(owner, learner.state_dict())
        slots, facts = checkpoints.optimiser_tensors(self.optimiser)
        tensors |= with_prefix("optimiser", slots)
        rows = [row.as_dict() for row in self.rows]
        if self.processes.is_first:
            checkpoints.save_checkpoint(self.folder, name, Checkpoint(tensors, {"rows": rows, "optimiser": facts}))

    def _resume(self) -> None:
        checkpoint = self._load_weights("last")
        if checkpoint is not None:
            self.rows = [row_from_dict(row) for row in checkpoint.facts["rows"]]
            slots = without_prefix("optimiser", checkpoint.tensors)
            checkpoints.restore_optimiser(self.optimiser, slots, checkpoint.facts["optimiser"])

    def _load_weights(self, name: str) -> Checkpoint | None:
        found = checkpoints.load_checkpoint(self.folder, name) if self.processes.is_first else None
        checkpoint: Checkpoint | None = self.processes.from_first(found)
        if checkpoint is not None:
            for owner, learner in self._learners.items():
                learner.load_state_dict(without_prefix(owner, checkpoint.tensors))
        return checkpoint


class _Forward(nn.Module):
    """All that learns on the way from photos, as one network: (n, 3, size, size) -> what the loss and teachers see."""

    def __init__(self, trainee: Trainee, projection: nn.Module, follower: nn.Module) -> None:
        super().__init__()
        self.trainee, self.projection, self.follower = trainee, projection, follower

    def forward(self, photos: torch.Tensor) -> tuple[torch.Tensor, Any]:
        embeddings = self.trainee(photos)
        return self.projection(embeddings), self.follower(embeddings)


def rate_factor(recipe: Recipe, epochs_done: float) -> float:
    """What the schedule multiplies every learning rate with, after so many epochs (a fraction within one)."""
    factor = 1.0
    if recipe.schedule == "cosine":
        factor = 0.5 * (1 + math.cos(math.pi * min(1.0, epochs_done / recipe.epochs)))
    elif recipe.schedule == "step":
        factor = recipe.step_factor ** (int(epochs_done) // recipe.step_epochs)
    if recipe.warmup_epochs > 0:
        factor *= min(1.0, (epochs_done + 1e-3) / recipe.warmup_epochs)
    return factor


def fast_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 here: on GPUs that have it, and on CPUs with AMX; elsewhere slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    return device.type == "cpu" and bool(torch.cpu._is_amx_tile_supported())


def _seed(seed: int, epoch: int) -> int:
    return int(np.random.SeedSequence([seed, epoch, 7]).generate_state(1)[0])
