"""Photos asked as if they were not enrolled -> how sure an answer is, what is unknown, what cannot be ruled out."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshot.classifier.metric import Metric, without_each
from fewshot.classifier.scores import N_SCORED, SOFTMAX_SCALE, familiarity
from fewshot.classifier.subjects import first_shots
from fewshot.records import Float32s, Int64s

# The part of enrolled photos that may be called unknown, were they asked without being enrolled.
REJECTED_PART = 0.05
_Z_95 = 1.6448536  # the normal distribution's 95 % point
# Where too little is enrolled to fit a temperature: fewer photos, or fewer classes.
FEWEST_PHOTOS, FEWEST_CLASSES = 20, 2
# One standard deviation of the temperature around its usual value, before any photo is seen, as a factor.
SCALE_FACTOR = 2.0
# Two photos of one class are one observation: each is as near to the other as the other to it.
FEWEST_FOR_A_THRESHOLD = 3


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Enrolled photos asked as if each had not been enrolled.

    Attributes:
        class_ids: (n,) int64, their classes.
        own: (n,) float32, similarity to the nearest prototype of their class, made without them.
        rivals: (n, m) float32, similarities to the nearest other classes, highest first; -inf beyond what there is.
    """

    class_ids: Int64s
    own: Float32s
    rivals: Float32s

    def __len__(self) -> int:
        return len(self.own)


@dataclass(frozen=True, slots=True)
class Calibration:
    """What leave-one-out says of an index.

    Attributes:
        scale: what a cosine is multiplied with to become a logit.
        threshold: the familiarity (`scores.familiarity`) below which a query is unknown; None: too little is
            enrolled to say.
        class_ids: (n,) int64, and `margins`: (n,) float32, by how much each photo is nearer to its own class than to
            any other; negative where another is nearer.
        metric: what classes are compared in; None: the plain cosine.
        whose: how messages call what the threshold is for.
    """

    scale: float
    threshold: float | None
    class_ids: Int64s
    margins: Float32s
    metric: Metric | None = None
    whose: str = "this index"

    def is_unknown(self, found: float) -> bool:
        """Whether a query of this familiarity belongs to no enrolled class."""
        return self.threshold is not None and found < self.threshold

    def explain(self, label: str, similarities: Float32s, found: float) -> str:
        """A sentence for the user: which familiarity was found, of which cosines, against what."""
        if self.threshold is None:
            return f"most like {label}; with one photo a class, or two in all, there is no telling what would be unlike"
        side = "below" if self.is_unknown(found) else "above"
        what = f"similarity {min(1.0, similarities[0]):.2f} to {label}"
        if len(similarities) > 1 and np.isfinite(similarities[1]):
            what += f", {min(1.0, similarities[1]):.2f} to the next"
        return f"{what}: familiarity {found:.2f}, {side} the threshold {self.threshold:.2f} of {self.whose}"

    def needed_margins(self, class_ids: Int64s, coverage: float) -> Float32s:
        """By how much a query must be nearer to a class than to any other for its label to stay in the conformal set.

        Each class is judged by its own photos, so that the promise holds in every class and not only on average; a
        class of too few photos for that (fewer than 9 for a coverage of 0.9) by those of all classes.

        Args:
            class_ids: (n,) int64, the labels in question.
            coverage: in (0, 1), the share of queries whose true label shall be in their set.

        Returns:
            (n,) float32, -inf for a label that cannot be ruled out.

        Source:
            Split conformal prediction, label-conditional: Vovk 2012, arXiv 1209.2673, section 3, with the leave-one-out
            margins of the enrolled photos as calibration scores. These are not exactly exchangeable with a query's,
            whose prototypes are made from one photo more, and the promise is void when queries come from elsewhere
            than the enrolled photos.
        """
        everyone = np.sort(self.margins)
        needed = np.full(len(class_ids), _lower_quantile(everyone, coverage), np.float32)
        for i, class_id in enumerate(class_ids.tolist()):
            own = np.sort(self.margins[self.class_ids == class_id])
            if _place(len(own), coverage):
                needed[i] = _lower_quantile(own, coverage)
        return needed


def asked_in(
    metric: Metric,
    support: Float32s,
    groups: Int64s,
    prototypes: Float32s,
    owners: Int64s,
    fitted: NDArray[np.bool_] | None = None,
    *,
    subjects: Int64s | None = None,
) -> LeaveOneOut:
    """Photos asked in the metric fitted on them, as if each had not been there, nor other shots of what it shows.

    Of several shots of one plant the first is asked.

    Args:
        metric: fitted on these photos, among others perhaps, with the counts of these prototypes.
        support: (n, dim) float32, rows of unit length.
        groups: (n,) int64, rows of `prototypes`; every photo's class has another photo, of another subject.
        prototypes: (n_prototypes, dim) float32, rows of unit length.
        owners: (n_prototypes,) int64, the prototypes' classes.
        fitted, subjects: see `metric.without_each`.
    """
    asked = np.arange(len(support)) if subjects is None else first_shots(subjects)
    if len(asked) == len(support):
        subjects = None  # each another
    order = np.argsort(owners, kind="stable")
    class_ids, first = np.unique(owners[order], return_index=True)
    cosines = without_each(metric, support, groups, prototypes, fitted, subjects=subjects, asked=asked)
    by_class = np.maximum.reduceat(cosines[:, order], first, axis=1)  # (n_asked, n_way)
    own_class = owners[groups[asked]]
    place = np.searchsorted(class_ids, own_class)
    rows = np.arange(len(asked))
    own = by_class[rows, place].copy()
    by_class[rows, place] = -np.inf
    n_rivals = max(1, min(N_SCORED, len(class_ids)) - 1)
    return LeaveOneOut(own_class, own, -np.sort(-by_class, axis=1)[:, :n_rivals])


def calibrate(found: LeaveOneOut, n_way: int, otherwise: float = SOFTMAX_SCALE) -> Calibration:
    """Temperature, threshold and margins from leave-one-out scores. Every class weighs the same.

    Args:
        found: the scores.
        n_way: among how many classes.
        otherwise: the scale, where there are too few photos or classes to fit one.
    """
    margins = (found.own - found.rivals[:, 0]).astype(np.float32)
    if len(found) == 0:
        return Calibration(otherwise, None, found.class_ids, margins)
    _, places, counts = np.unique(found.class_ids, return_inverse=True, return_counts=True)
    weights = 1 / counts[places]
    enough = len(found) >= FEWEST_PHOTOS and n_way >= FEWEST_CLASSES
    return Calibration(
        _fitted_scale(found, weights, n_way) if enough else otherwise,
        _threshold(found, weights, n_way) if len(found) >= FEWEST_FOR_A_THRESHOLD else None,
        found.class_ids,
        margins,
    )


def _fitted_scale(found: LeaveOneOut, weights: np.ndarray, n_way: int) -> float:
    """The scale under which the photos' true classes are likeliest (temperature scaling, arXiv 1706.04599).

    Where leave-one-out makes no error, as in most indexes of a few classes, the likelihood has no maximum: each larger
    scale is likelier, and wrong answers would be stated with certainty. A log-normal prior around the usual scale ends
    that; it weighs as much as one photo (docs/log.md).
    """
    # (n, 1 + m); the last rival stands for all classes beyond, as in `scores.probabilities`.
    gaps = found.rivals.astype(np.float64) - found.own[:, None]
    n_beyond = max(0, n_way - 1 - gaps.shape[1])

    def loss(scale: float) -> float:
        logits = scale * gaps
        top = np.maximum(logits.max(axis=1), 0)
        total = np.exp(-top) + np.exp(logits - top[:, None]).sum(axis=1) + n_beyond * np.exp(logits[:, -1] - top)
        unusual = np.log(scale / SOFTMAX_SCALE) / np.log(SCALE_FACTOR)
        return float(np.average(top + np.log(total), weights=weights) + unusual**2 / 2 / len(found))

    scales = np.geomspace(2, 200, 94)  # steps of 5 %
    return float(scales[np.argmin([loss(scale) for scale in scales])])


def _threshold(found: LeaveOneOut, weights: np.ndarray, n_way: int) -> float:
    """Where photos asked without being enrolled part best from photos whose whole class is not enrolled.

    Never so high that more than `REJECTED_PART` of the former fall below.
    """
    everything = np.sort(np.concatenate([found.own[:, None], found.rivals], axis=1), axis=1)[:, ::-1]
    known = familiarity(everything)
    order = np.argsort(known)
    part = np.cumsum(weights[order]) / weights.sum()
    highest = float(known[order][min(int(np.searchsorted(part, REJECTED_PART)), len(known) - 1)])
    if len(known) > 1:  # of a few photos the lowest is no bound for the next one
        spread = float(known.std(ddof=1)) * np.sqrt(1 + 1 / len(known))
        highest = min(highest, float(known.mean()) - student_t_quantile(_Z_95, len(known) - 1) * spread)
    if n_way <= FEWEST_CLASSES:
        return highest
    strange = familiarity(found.rivals)  # the photo's own class left out
    tried = np.linspace(min(float(known.min()), highest), highest, 200)
    rejected = _share_below(strange, weights, tried) - _share_below(known, weights, tried)
    return float(tried[np.argmax(rejected)])


def _share_below(values: Float32s, weights: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """The weight of the values below each bound, as a share of all.

    >>> _share_below(np.array([2, 1, 3], np.float32), np.array([1, 2, 1]), np.array([1.0, 1.5, 9.0])).tolist()
    [0.0, 0.5, 1.0]
    """
    order = np.argsort(values, kind="stable")
    total = np.concatenate([[0.0], np.cumsum(weights[order])])
    return np.asarray(total[np.searchsorted(values[order], bounds)] / total[-1])


def student_t_quantile(z: float, df: int) -> float:
    """Student's t where the normal distribution has `z`: the Cornish-Fisher expansion.

    To 1 % from 4 degrees of freedom on at the 95 % quantile, to 2 % at the 97.5 % quantile.

    >>> round(student_t_quantile(1.959964, 9), 2), round(student_t_quantile(1.959964, 10**6), 2)
    (2.26, 1.96)
    """
    return z + (z**3 + z) / (4 * df) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * df**2)


def _lower_quantile(ascending: Float32s, coverage: float) -> float:
    """The value that a new one falls below with probability at most 1 - coverage; -inf where too few are known."""
    place = _place(len(ascending), coverage)
    return float(ascending[place - 1]) if place else -np.inf


def _place(n_known: int, coverage: float) -> int:
    """Which of `n_known` values in ascending order bounds a new one from below, counted from 1; 0: too few are known.

    >>> [_place(9, coverage) for coverage in (0.95, 0.9, 0.5, 1e-12)], _place(0, 1e-12)
    ([0, 1, 5, 9], 0)
    """
    return min(n_known, int((n_known + 1) * (1 - coverage) + 1e-9))
