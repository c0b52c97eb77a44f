"""How an index's own photos spread around their prototypes -> the metric that its classes are compared in."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from fewshot.records import Float32s, Int64s
from fewshot.transforms import group_sums, unit_rows

# Directions in which photos spread so little, against what the prior expects, are left as they are.
LEAST_SPREAD = 1e-3
_LEAST_LENGTH = 1e-12
# Photos of one class are taken to agree at least so much, so that no prototype of one photo outgrows all others.
LEAST_AGREEMENT = 0.25


@dataclass(frozen=True, slots=True)
class Metric:
    """A linear map under which enrolled photos spread about alike in every direction around their prototypes.

    Attributes:
        directions: (n_directions, dim) float32, orthonormal rows.
        factors: (n_directions,) float32 in (0, 1], what an embedding's part along each direction is multiplied with;
            what is orthogonal to all of them stays.
        prior: squared spread, summed over photos, that every direction is credited with before any photo is seen;
            infinite where no photo has a say.
        agreement: the mean cosine between two photos of one prototype, in (0, 1]; 1 where no prototype has two.
        counts: (n_prototypes,) int64, from how many photos each prototype is made.
    """

    directions: Float32s
    factors: Float32s
    prior: float
    agreement: float
    counts: Int64s

    def moved(self, embeddings: Float32s) -> Float32s:
        """(n, dim) float32 -> (n, dim) float32, rows of any length both. Linear."""
        along = embeddings @ self.directions.T  # (n, n_directions)
        moved: Float32s = (embeddings - (along * (1 - self.factors)) @ self.directions).astype(np.float32, copy=False)
        return moved

    def __call__(self, embeddings: Float32s) -> Float32s:
        """(n, dim) float32 -> (n, dim) float32, rows of unit length: a dot product is a cosine in this metric."""
        return unit_rows(self.moved(embeddings))

    def placed(self, prototypes: Float32s) -> Float32s:
        """Prototypes as queries are compared with them: a dot product is a similarity, a cosine times `gains`.

        Args:
            prototypes: (n_prototypes, dim) float32, those of `counts`, in their order.
        """
        placed: Float32s = self(prototypes) * self.gains(self.counts)[:, None]
        return placed

    def gains(self, counts: Int64s) -> Float32s:
        """By how much the mean of so many photos is too far from a new photo of its class, as a factor of 1 or more.

        The direction of a mean is the less sure, the fewer photos it is made from, and all true queries lie farther
        from it. Uncorrected, a class of 5 photos loses queries to a neighbour of 20 for no other reason (docs/log.md).
        If two photos of a class have the expected cosine r, their mean of n has the expected squared length
        r + (1 - r) / n, and its cosine to the class's true direction is the square root of r over that.
        """
        r = self.agreement
        gains: Float32s = np.sqrt(1 + (1 - r) / (r * np.maximum(counts, 1))).astype(np.float32)
        return gains


def plain_metric(dim: int, counts: Int64s) -> Metric:
    """The metric that leaves embeddings, and similarities to prototypes of so many photos, as they are."""
    return Metric(np.zeros((0, dim), np.float32), np.zeros(0, np.float32), np.inf, 1.0, counts)


def fit_metric(support: Float32s, groups: Int64s, counts: Int64s | None = None) -> Metric:
    """The metric of an index from its photos: what varies among photos of one class counts less between classes.

    A backbone that was trained brings the within-class covariance of its training classes (`transforms.whitening`);
    this is the same idea once more, with the classes that are enrolled. Their few photos cannot say how far each of
    hundreds of directions is to be trusted, so their scatter is added to a prior that is alike in all directions and
    weighs as much as one photo a dimension. How heavy it is matters little (docs/log.md).

    Args:
        support: (n_support, dim) float32, rows of unit length.
        groups: (n_support,) int64 from 0: which prototype each photo belongs to.
        counts: (n_prototypes,) int64, from how many photos each prototype is made, where `support` is a sample of them;
            None: it is all of them.

    Returns:
        The plain metric where no prototype has two photos that differ.

    Source:
        Linear discriminant analysis with a shrunk covariance: Friedman 1989, "Regularized discriminant analysis",
        eq. 18. There the covariance is inverted; here the classes keep their prototypes, and both sides are moved.
    """
    means, n_here = _means(support, groups)
    around = (support - means[groups]).astype(np.float32)
    n_free = len(support) - int((n_here > 0).sum())
    counts = n_here if counts is None else counts
    total = float((around**2).sum())
    if n_free < 1 or total < _LEAST_LENGTH:
        return plain_metric(support.shape[1], counts)
    prior = total / n_free
    around = around.astype(np.float64)
    small = around @ around.T if len(around) < around.shape[1] else around.T @ around  # both have the same values
    with threadpool_limits(1, "blas"):  # a second thread makes it slower, on a busy machine much slower
        scatters, sides = np.linalg.eigh(small)
    kept = scatters > LEAST_SPREAD * prior
    scatters, sides = scatters[kept], sides[:, kept]
    directions = sides.T @ around / np.sqrt(scatters)[:, None] if len(around) < around.shape[1] else sides.T
    factors = np.sqrt(prior / (prior + scatters))
    found = Metric(np.ascontiguousarray(directions, np.float32), factors.astype(np.float32), prior, 1.0, counts)
    return replace(found, agreement=_agreement(found(support), groups))


def _agreement(moved: Float32s, groups: Int64s) -> float:
    """The mean cosine over all pairs of photos of one prototype; there is at least one."""
    counts = np.bincount(groups)
    sums = group_sums(moved, groups, len(counts))
    n_pairs = float((counts * (counts - 1)).sum())
    return min(1.0, max(LEAST_AGREEMENT, (float((sums**2).sum()) - len(moved)) / n_pairs))


def _means(support: Float32s, groups: Int64s, n_groups: int = 0) -> tuple[np.ndarray, Int64s]:
    """The groups' means, (n_groups, dim) float64, not of unit length, and how many photos each has."""
    counts = np.bincount(groups, minlength=n_groups)
    return group_sums(support, groups, len(counts)) / np.maximum(counts, 1)[:, None], counts


def without_each(
    metric: Metric,
    support: Float32s,
    groups: Int64s,
    prototypes: Float32s,
    fitted: NDArray[np.bool_] | None = None,
    *,
    subjects: Int64s | None = None,
    asked: Int64s | None = None,
) -> Float32s:
    """Each photo's similarity to every prototype, in the metric and with the prototypes that there were without it.

    A photo is in its prototype and in the metric, and both flatter it; so do other shots of what it shows, and all of
    them are left out. Taking them out of the mean is a subtraction; taking them out of the scatter, as if all lay at
    their mean, changes the inverse by a matrix of rank one, so no metric is fitted again.

    Args:
        metric: fitted on these photos, among others perhaps.
        support: (n, dim) float32, rows of unit length.
        groups: (n,) int64, rows of `prototypes`.
        prototypes: (n_prototypes, dim) float32, rows of unit length, made from as many photos as `metric.counts` says.
        fitted: (n,) bool, which of the photos the metric was fitted on, all shots of a subject or none; None: all.
        subjects: (n,) int64 from 0, what each photo shows; all photos of one subject are here, and in one group. None:
            each shows another.
        asked: rows of `support` to ask; None: all.

    Returns:
        (n_asked, n_prototypes) float32, cosines times `Metric.gains`; -inf for the prototype that a photo's subject is
        alone in.

    Source:
        Sherman & Morrison 1950, "Adjustment of an inverse matrix".
    """
    asked = np.arange(len(support)) if asked is None else asked
    means, counts = _means(support, groups)
    fitted_means, n_fitted = (means, counts) if fitted is None else _means(support[fitted], groups[fitted], len(counts))
    moved_prototypes = metric.moved(prototypes)
    lengths = (moved_prototypes**2).sum(axis=1)  # squared, (n_prototypes,)
    gains = metric.gains(metric.counts)
    found = np.empty((len(asked), len(prototypes)), np.float32)
    for start in range(0, len(asked), 500):
        rows = asked[start : start + 500]
        x, group = metric.moved(support[rows]), groups[rows]
        shot, n_shots = _shots(support, subjects, rows)
        away = shot - fitted_means[group]
        d, shot = metric.moved(away.astype(np.float32)), metric.moved(shot)  # the map is linear
        n = n_fitted[group].astype(np.float64)
        # Without k photos in one place the scatter is less by k n / (n - k) times their deviation squared.
        less = np.where(n > n_shots, n_shots * n / np.maximum(n - n_shots, 1), 0.0) / metric.prior
        if fitted is not None:
            less = np.where(fitted[rows], less, 0.0)
        # Their part of the scatter along the way; at most that of the only ones, as the mean may be of others than were
        # fitted.
        length, most = (d**2).sum(axis=1), less * (away**2).sum(axis=1)
        part = np.minimum(less * length, most / (1 + most))
        gain = part / np.maximum((1 - part) * length, _LEAST_LENGTH)  # (n,)
        xd = (x * d).sum(axis=1)
        x_length = (x**2).sum(axis=1) + gain * xd**2

        def cosine(
            product: np.ndarray, along: np.ndarray, length: np.ndarray, k: np.ndarray, by: np.ndarray, own: np.ndarray
        ) -> np.ndarray:
            lengths_squared = own * (length + k * along**2)
            return np.asarray((product + k * by * along) / np.sqrt(np.maximum(lengths_squared, _LEAST_LENGTH)))

        similarities = cosine(
            x @ moved_prototypes.T, d @ moved_prototypes.T, lengths, gain[:, None], xd[:, None], x_length[:, None]
        )
        similarities *= gains
        # The own prototype, without the photo and its sisters: the sum of its group, less theirs.
        n_group = metric.counts[group].astype(np.float64)
        # Its length from the photos here, which may be a sample of those that it is the sum of: a mean of few would be
        # longer, and leave the photo in it.
        scale = n_group * (means[group] * prototypes[group]).sum(axis=1)
        rest = (scale[:, None] * moved_prototypes[group] - n_shots[:, None] * shot).astype(np.float32)
        own = cosine((x * rest).sum(axis=1), (d * rest).sum(axis=1), (rest**2).sum(axis=1), gain, xd, x_length)
        n_left = np.asarray(n_group - n_shots, np.int64)
        similarities[np.arange(len(rows)), group] = np.where(n_left > 0, own * metric.gains(n_left), -np.inf)
        found[start : start + 500] = similarities
    return found


def _shots(support: Float32s, subjects: Int64s | None, rows: Int64s) -> tuple[Float32s, np.ndarray]:
    """The mean of all photos of what each of some rows shows, (n, dim) float32, and how many those are."""
    if subjects is None:
        return support[rows], np.ones(len(rows))
    numbers, place = np.unique(subjects[rows], return_inverse=True)
    known = np.searchsorted(numbers, subjects)
    here = np.flatnonzero(numbers[np.minimum(known, len(numbers) - 1)] == subjects)
    means, counts = _means(support[here], known[here])
    return means[place].astype(np.float32), counts[place].astype(np.float64)
