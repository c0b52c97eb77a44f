"""The metric-learning losses, with margin and scale.

Seven losses under one call, `loss(embeddings, class_index)`: three compare photos of one batch with each other
(contrastive, triplet, quadruplet; the batch must hold several photos of several classes), four compare photos with
one learned vector a class (SphereFace, CosFace, ArcFace, cross-entropy).
"""

import math
from typing import Any

import torch
from pytorch_metric_learning import distances as pml_distances
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners
from torch import nn
from torch.nn import functional

from fewshot.errors import UsageError, did_you_mean

MININGS = ("all", "semihard", "hard")
QUADRUPLET_FORMS = ("anchor", "four-sample")
# A cosine of exactly 1 (an embedding that is its class's vector) has an angle whose derivative is infinite.
_COSINE_LIMIT = 1.0 - 1e-6


class MetricLoss(nn.Module):
    """What every loss has: a scalar from a batch, and whether the batch must hold several photos a class."""

    compares_photos = False

    def forward(self, embeddings: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        """The loss of a batch, a scalar.

        Args:
            embeddings: (n, dim) float, any length; each loss says whether it scales them to unit length.
            class_index: (n,) int64, each in [0, n_classes).
        """
        raise NotImplementedError

    def at_step(self, step: int) -> None:
        """Tell the loss how many batches have been trained, before the next. Only SphereFace's annealing listens."""

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        """(n, n_classes) scores without a margin, or None for a loss that has no class vectors."""
        return None

    def set_class_vectors(self, vectors: torch.Tensor) -> None:
        """Start the class vectors at `vectors`, (n_classes, dim).

        Raises:
            UsageError: the loss has none, or its classifier is not a set of vectors compared by angle.
        """
        raise UsageError(f"{type(self).__name__} has no class vectors to start from.")


class _ComparingPhotos(MetricLoss):
    """A loss of the library over the pairs or triplets that a miner picks in the batch."""

    compares_photos = True

    def __init__(self, loss: Any, mining: str, margin: float) -> None:
        super().__init__()
        self._loss: Any = loss
        self._miner = _miner(mining, margin)

    def forward(self, embeddings: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        chosen = self._miner(embeddings, class_index) if self._miner is not None else None
        return _scalar(self._loss(embeddings, class_index, chosen))


class _ByAngle(MetricLoss):
    """A loss of the library that compares photos with one learned vector a class by their angle."""

    def __init__(self, loss: Any) -> None:
        super().__init__()
        self._loss: Any = loss

    def forward(self, embeddings: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        return _scalar(self._loss(embeddings, class_index))

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        return _scalar(self._loss.get_logits(embeddings))

    def set_class_vectors(self, vectors: torch.Tensor) -> None:
        with torch.no_grad():
            self._loss.W.copy_(vectors.T)


class Contrastive(_ComparingPhotos):
    """Same-class pairs are pulled together, other pairs pushed at least `margin` apart.

    For a pair at the Euclidean distance D of its unit-length embeddings: D^2 if both show one class, else
    max(margin - D, 0)^2. The loss is the mean over same-class pairs plus the mean over other pairs, each mean over its
    non-zero terms.

    The margin bounds D. With `mining="semihard"` the same number also picks the triplets whose pairs count, and there
    it bounds a difference of D^2: that between the other pair and the same-class pair.

    Source:
        Hadsell, Chopra, LeCun 2006, eq. 4. Departures: no factor 1/2; unit-length embeddings, so D is in [0, 2]; the
        two kinds of pair weigh the same however many there are, and pairs already apart do not dilute the mean
        (pytorch-metric-learning's reducer). That library's own ContrastiveLoss is linear in D; ours squares, as the
        paper does.
    """

    def __init__(self, margin: float = 1.0, mining: str = "all") -> None:
        distance = pml_distances.LpDistance(p=2, power=1)
        super().__init__(_SquaredContrastive(neg_margin=margin, distance=distance), mining, margin)


class Triplet(_ComparingPhotos):
    """An anchor is nearer to its positive than to its negative by `margin`.

    max(D_ap - D_an + margin, 0) with D the squared Euclidean distance of unit-length embeddings (in [0, 4]), averaged
    over the triplets whose term is not zero.

    Source:
        Schroff et al. 2015 (FaceNet), eq. 3, arXiv 1503.03832. They sum over mined triplets; the mean over the
        non-zero ones is pytorch-metric-learning's, and keeps the step size when most triplets are solved.
    """

    def __init__(self, margin: float = 1.0, mining: str = "all") -> None:
        distance = pml_distances.LpDistance(p=2, power=2)
        super().__init__(pml_losses.TripletMarginLoss(margin=margin, distance=distance), mining, margin)


class Quadruplet(MetricLoss):
    """A positive is nearer than each of two negatives, by one margin each.

    With D the squared Euclidean distance of unit-length embeddings, an anchor a, a positive p, negatives n1, n2:

    - form "anchor": max(D_ap - D_an1 + margin, 0) + max(D_ap - D_an2 + margin_2, 0).
    - form "four-sample": the second term is max(D_ap - D_n1n2 + margin_2, 0), where a, n1, n2 are of three classes:
      a same-class pair is closer than a pair of which neither photo shows its class.

    Each term is averaged over its own non-zero entries: the first over the batch's triplets (a, p, n1); the second
    over (a, p, n2), or over (a, p, n1, n2). The mean over whole quadruplets is the same in a P x K batch, where every
    triplet belongs to equally many.

    `mining="hard"` takes, for each anchor, the farthest positive, the nearest negative as n1, and as n2 the second
    nearest (form "anchor") or the closest pair of other classes (form "four-sample").

    Source:
        The four-sample form is Chen et al. 2017, eq. 4-5, arXiv 1704.01719; they learn D with a network, we use the
        distance of the embeddings. The anchor form is what the plant-disease study used. No library has either.
    """

    compares_photos = True

    def __init__(self, margin: float = 2.0, margin_2: float = 1.0, form: str = "anchor", mining: str = "all") -> None:
        super().__init__()
        _known("quadruplet form", form, QUADRUPLET_FORMS)
        _known("mining of the quadruplet loss", mining, ("all", "hard"))
        self.margin, self.margin_2, self.form, self.mining = margin, margin_2, form, mining

    def forward(self, embeddings: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        """The two terms of a batch, added."""
        unit = functional.normalize(embeddings, dim=1)
        # 2 - 2 cos, not cdist ** 2: exact where it matters and half the time. (n, n)
        distance = (2.0 - 2.0 * unit @ unit.T).clamp(min=0.0)
        same = class_index[:, None] == class_index[None, :]
        positive = same & ~torch.eye(len(same), dtype=torch.bool, device=same.device)
        terms = self._hard if self.mining == "hard" else self._all
        first, second = terms(distance, positive, ~same)
        return _mean_nonzero(first) + _mean_nonzero(second)

    def _all(
        self, distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        triplet = positive[:, :, None] & negative[:, None, :]  # (a, p, n)
        gap = (distance[:, :, None] - distance[:, None, :])[triplet]
        first = functional.relu(gap + self.margin)
        if self.form == "anchor":
            return first, functional.relu(gap + self.margin_2)
        anchor, mate = positive.nonzero(as_tuple=True)
        one, other = negative.triu().nonzero(as_tuple=True)  # (n1, n2) of two classes, once: D is symmetric
        apart = negative[anchor][:, one] & negative[anchor][:, other]  # (pairs, pairs)
        second = distance[anchor, mate][:, None] - distance[one, other][None, :]
        return first, functional.relu(second[apart] + self.margin_2)

    def _hard(
        self, distance: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        usable = positive.any(dim=1) & (negative.sum(dim=1) >= 2)
        distance_ap = distance.masked_fill(~positive, -1.0).amax(dim=1)[usable]
        nearest = distance.masked_fill(~negative, float("inf"))[usable].topk(2, dim=1, largest=False).values
        first = functional.relu(distance_ap - nearest[:, 0] + self.margin)
        if self.form == "anchor":
            return first, functional.relu(distance_ap - nearest[:, 1] + self.margin_2)
        one, other = negative.triu().nonzero(as_tuple=True)
        apart = (negative[:, one] & negative[:, other])[usable]  # (anchors, pairs)
        closest = distance[one, other][None, :].expand(apart.shape).masked_fill(~apart, float("inf")).amin(dim=1)
        return first, functional.relu(distance_ap - closest + self.margin_2)


class SphereFace(_ByAngle):
    """Cross-entropy in which a photo must beat the other classes at `margin` times its angle to its own class.

    The logit of class j is |x| cos(theta_j); for the photo's own class cos(theta) is replaced by
    psi(theta) = (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m]. Embeddings keep their length;
    class vectors are of unit length.

    With `annealing`, the own class's cosine is (w cos(theta) + psi(theta)) / (1 + w), where w falls with the steps as
    max(5, 1000 / (1 + 0.12 step)): without it, a margin of 4 does not start from random class vectors.

    Source:
        Liu et al. 2017, eq. 7, arXiv 1704.08063, and its reference code for the annealing, which the paper's equation
        leaves out (so does pytorch-metric-learning; ours adds it).
    """

    def __init__(self, n_classes: int, dim: int, margin: int = 4, annealing: bool = True) -> None:
        if margin != int(margin) or margin < 1:
            raise UsageError(f"SphereFace's margin multiplies the angle: {margin} is no whole number above 0.")
        super().__init__(_AnnealedSphereFace(num_classes=n_classes, embedding_size=dim, margin=int(margin), scale=1))
        self.annealing = annealing
        self.at_step(0)

    def at_step(self, step: int) -> None:
        """Set the annealing's weight; without annealing, 0."""
        self._loss.plain_weight = max(5.0, 1000.0 / (1.0 + 0.12 * step)) if self.annealing else 0.0


class CosFace(_ByAngle):
    """Cross-entropy over `scale` x cosine, in which the photo's own class is handicapped by `margin`.

    The logit of class j is s cos(theta_j), and s (cos(theta) - m) for the photo's own class.

    Source:
        Wang et al. 2018, eq. 4, arXiv 1801.09414. No departure.
    """

    def __init__(self, n_classes: int, dim: int, margin: float = 0.4, scale: float = 32.0) -> None:
        super().__init__(pml_losses.CosFaceLoss(num_classes=n_classes, embedding_size=dim, margin=margin, scale=scale))


class ArcFace(_ByAngle):
    """Cross-entropy over `scale` x cosine, in which the photo's angle to its own class is widened.

    The logit of class j is s cos(theta_j), and s cos(theta + m) for the photo's own class. Where theta + m passes
    180 degrees it is s (cos(theta) - m sin(m)) with m in radians, which goes on falling.

    Source:
        Deng et al. 2019, eq. 3, arXiv 1801.07698, and its reference code for angles near 180 degrees (also in
        pytorch-metric-learning). Departure: the cosine is clamped to 1 - 1e-6, where the angle's derivative is
        finite; the library's turns to NaN for an embedding that equals its class's vector.
    """

    def __init__(self, n_classes: int, dim: int, margin_degrees: float = 28.6, scale: float = 32.0) -> None:
        # The library takes degrees and then stores radians under the same name: it stays inside.
        super().__init__(_ClampedArcFace(num_classes=n_classes, embedding_size=dim, margin=margin_degrees, scale=scale))


class CrossEntropy(MetricLoss):
    """Cross-entropy of a linear layer with bias over the embeddings as they are: the losses' common yardstick."""

    def __init__(self, n_classes: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, n_classes)

    def forward(self, embeddings: torch.Tensor, class_index: torch.Tensor) -> torch.Tensor:
        """The mean cross-entropy of a batch."""
        return functional.cross_entropy(self.linear(embeddings), class_index)

    def logits(self, embeddings: torch.Tensor) -> torch.Tensor | None:
        """(n, n_classes), what the linear layer gives."""
        return _scalar(self.linear(embeddings))


def build_loss(name: str, n_classes: int, dim: int, **settings: Any) -> MetricLoss:
    """The loss called `name`, ready for embeddings of length `dim`.

    Args:
        name: a key of `LOSSES`.
        n_classes: number of classes in training.
        dim: the embedding's length.
        settings: the loss's own margin, scale, mining or form; what is not given takes the studies' values.

    Raises:
        UsageError: no such loss, setting, mining or form; the message suggests the nearest.

    >>> build_loss("arcface", n_classes=5, dim=8, margin_degrees=20).compares_photos
    False
    """
    _known("loss", name, tuple(LOSSES))
    kind = LOSSES[name]
    sizes = {} if kind.compares_photos else {"n_classes": n_classes, "dim": dim}
    try:
        loss: MetricLoss = kind(**sizes, **settings)
    except TypeError as error:
        raise UsageError(f"the {name} loss does not take these settings: {sorted(settings)} ({error}).") from error
    return loss


LOSSES: dict[str, Any] = {
    "contrastive": Contrastive,
    "triplet": Triplet,
    "quadruplet": Quadruplet,
    "sphereface": SphereFace,
    "cosface": CosFace,
    "arcface": ArcFace,
    "cross-entropy": CrossEntropy,
}


class _SquaredContrastive(pml_losses.ContrastiveLoss):  # type: ignore[misc]  # the library has no types
    def pos_calc(self, distance: torch.Tensor, margin: float) -> torch.Tensor:
        return functional.relu(distance - margin) ** 2

    def neg_calc(self, distance: torch.Tensor, margin: float) -> torch.Tensor:
        return functional.relu(margin - distance) ** 2


class _AnnealedSphereFace(pml_losses.SphereFaceLoss):  # type: ignore[misc]
    plain_weight = 0.0

    def init_margin(self) -> None:
        # As the library's, which fills a tensor from a list of numpy scalars: numpy warns that this will end.
        self.max_n = self.margin // 2
        self.n_range = torch.arange(self.max_n + 1)
        self.margin_choose_n = torch.tensor([float(math.comb(self.margin, 2 * n)) for n in range(self.max_n + 1)])
        self.cos_powers = self.margin - 2 * self.n_range
        self.alternating = (-1) ** self.n_range

    def modify_cosine_of_target_classes(self, cosine: torch.Tensor) -> torch.Tensor:
        psi = super().modify_cosine_of_target_classes(cosine)
        return _scalar((self.plain_weight * cosine + psi) / (1.0 + self.plain_weight))


class _ClampedArcFace(pml_losses.ArcFaceLoss):  # type: ignore[misc]
    def get_angles(self, cosine: torch.Tensor) -> torch.Tensor:
        return torch.acos(cosine.clamp(-_COSINE_LIMIT, _COSINE_LIMIT))


def _miner(mining: str, margin: float) -> Any:
    """A miner on the squared distances of unit-length embeddings, or None to compare all with all.

    The triplet loss is of the same distances. Contrastive's is of their roots, which are in the same order, so that
    hard pairs are the same; semihard triplets are those whose squared distances differ by less than `margin`.
    """
    _known("mining", mining, MININGS)
    squared = pml_distances.LpDistance(p=2, power=2)
    if mining == "hard":
        return pml_miners.BatchHardMiner(distance=squared)
    if mining == "semihard":
        return pml_miners.TripletMarginMiner(margin=margin, type_of_triplets="semihard", distance=squared)
    return None


def _mean_nonzero(terms: torch.Tensor) -> torch.Tensor:
    """The mean of the terms above zero; 0, still attached to the graph, when there are none."""
    return terms.sum() / (terms > 0).sum().clamp(min=1)


def _known(what: str, name: str, known: tuple[str, ...]) -> None:
    if name not in known:
        raise UsageError(
            f"there is no {what} {name!r}.",
            hint=f"{did_you_mean(name, known)} Known: {', '.join(known)}.".strip(),
        )


def _scalar(value: Any) -> torch.Tensor:
    """Types the untyped library's answer."""
    assert isinstance(value, torch.Tensor)
    return value
