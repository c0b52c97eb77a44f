"""What an index's own photos say of its answers: the metric, how sure, how unfamiliar, what cannot be ruled out."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.classifier import MIN_GROUP, N_SCORED, SOFTMAX_SCALE, familiarity
from fewshot.errors import CacheDamagedError
from fewshot.metric import Metric, fit_metric, without_each
from fewshot.neighbours import Neighbours
from fewshot.records import Float32s, Int64s
from fewshot.sealed import read_sealed, write_sealed
from fewshot.store import OfContents, Reader
from fewshot.subjects import first_shots, subject_means

# The part of enrolled photos that may be called unknown, were they asked without being enrolled.
REJECTED_PART = 0.05
# At most so many photos are asked, and fewer where there are many prototypes to ask among.
MOST_ASKED, MOST_COMPARISONS = 4000, 10_000_000
# A question that is narrowed to some classes is calibrated while it waits.
MOST_ASKED_WITHIN = 1000
# So many calibrations of narrowed questions are kept, each a few kilobytes.
MOST_CHOICES_KEPT = 100
# An index of more prototypes compares by plain cosine: moving them all anew after each change would take too long.
MOST_MOVED = 2000
_Z_95 = 1.6448536  # the normal distribution's 95 % point
# Where too little is enrolled to fit a temperature: fewer photos, or fewer classes.
FEWEST_PHOTOS, FEWEST_CLASSES = 20, 2
# One standard deviation of the temperature around its usual value, before any photo is seen, as a factor.
SCALE_FACTOR = 2.0
# Two photos of one class are one observation: each is as near to the other as the other to it.
FEWEST_FOR_A_THRESHOLD = 3
# Of the cached file: another number than the file's, and it is made anew.
VERSION = 7


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
        threshold: the familiarity (`classifier.familiarity`) below which a query is unknown; None: too little is
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


class Calibrations:
    """The calibrations of one index: in memory for the content it has, on disk for the next start.

    Several threads may ask at once, each in a view of its own.

    Args:
        neighbours: lookups in that index.
        cache: where the file is; it can be deleted at any time.
    """

    def __init__(self, neighbours: Neighbours, cache: Path) -> None:
        self._neighbours, self._cache = neighbours, cache
        self._kept: OfContents[tuple[Calibration, dict[tuple[int, ...], Calibration]]] = OfContents()
        self._narrowing = threading.Lock()

    def of(self, reader: Reader, within: Sequence[int] | None = None) -> Calibration:
        """What the index's own photos say of its answers, or of those among some classes; made once a content."""
        known, known_within = self._kept.of(reader, lambda: (self._made(reader), {}))
        if within is None:
            return known
        with self._narrowing:
            narrowed = known_within.get(tuple(within))
            if narrowed is None:
                if len(known_within) >= MOST_CHOICES_KEPT:
                    known_within.clear()
                narrowed = calibrated_within(reader, self._neighbours, known, within)
                known_within[tuple(within)] = narrowed
            return narrowed

    def _made(self, reader: Reader) -> Calibration:
        if reader.about().generation < self._kept.newest:  # for a thread that still asks in a view before a change
            return calibrated_anew(reader, self._neighbours)
        return calibrated(reader, self._neighbours, self._cache)


def calibrated(reader: Reader, neighbours: Neighbours, cache: Path) -> Calibration:
    """The calibration of an index in a reader's view: the cached one of this generation, or made now and cached."""
    about = reader.about()
    made_for = {
        "kind": "calibration",
        "version": VERSION,
        "fingerprint": about.fingerprint,
        "generation": about.generation,
        "token": reader.token(about.generation),
    }
    try:
        payload, facts = read_sealed(cache)
        if all(facts.get(name) == value for name, value in made_for.items()):
            return _unpacked(payload, facts)
    except (CacheDamagedError, KeyError):
        pass  # missing, damaged, or written by an earlier version: made anew from the store
    found = calibrated_anew(reader, neighbours)
    payload, facts = _packed(found)
    try:
        write_sealed(cache, lambda target: target.write_bytes(payload), {**made_for, **facts})
    except OSError:
        pass  # a folder that cannot be written costs the next start a fraction of a second, nothing else
    return found


def calibrated_anew(reader: Reader, neighbours: Neighbours) -> Calibration:
    """The calibration of an index in a reader's view, from its photos."""
    asked, metric = asked_enrolled(reader, neighbours)
    return replace(calibrate(asked, reader.n_classes()), metric=metric)


def _packed(found: Calibration) -> tuple[bytes, dict[str, Any]]:
    facts: dict[str, Any] = {
        "n": len(found.margins),
        "scale": found.scale,
        "threshold": found.threshold,
        "metric": None,
    }
    arrays: list[np.ndarray] = [found.class_ids, found.margins]
    if found.metric is not None:
        prior = found.metric.prior if np.isfinite(found.metric.prior) else None
        facts["metric"] = {
            "n_directions": len(found.metric.factors),
            "dim": found.metric.directions.shape[1],
            "prior": prior,
            "agreement": found.metric.agreement,
            "n_prototypes": len(found.metric.counts),
        }
        arrays[1:1] = [found.metric.counts]
        arrays += [found.metric.factors, found.metric.directions]
    return b"".join(array.tobytes() for array in arrays), facts


def _unpacked(payload: bytes, facts: dict[str, Any]) -> Calibration:
    n = int(facts["n"])
    about = facts["metric"]
    n_prototypes = 0 if about is None else int(about["n_prototypes"])
    whole = np.frombuffer(payload, np.int64, n + n_prototypes)
    class_ids, numbers = whole[:n], np.frombuffer(payload, np.float32)[2 * len(whole) :]
    metric = None
    if about is not None:
        n_directions = int(about["n_directions"])
        factors, rest = numbers[n : n + n_directions], numbers[n + n_directions :]
        prior = np.inf if about["prior"] is None else about["prior"]
        metric = Metric(rest.reshape(n_directions, about["dim"]), factors, prior, about["agreement"], whole[n:])
    return Calibration(facts["scale"], facts["threshold"], class_ids, numbers[:n], metric)


def calibrated_within(reader: Reader, neighbours: Neighbours, known: Calibration, within: Sequence[int]) -> Calibration:
    """The calibration of a question that only some classes can answer: their photos, asked among these classes alone.

    With other rivals the leads are others, and so are what is unknown, how sure an answer is and what is ruled out.

    Args:
        reader: the view to answer in.
        neighbours: lookups in that index.
        known: the calibration of this generation; its metric stays.
        within: class ids.
    """
    asked, _ = asked_enrolled(reader, neighbours, within, known.metric)
    found = calibrate(asked, len(within), otherwise=known.scale)
    if found.threshold is None:  # too few photos: those of the whole index say more than nothing
        return replace(found, metric=known.metric, threshold=known.threshold)
    return replace(found, metric=known.metric, whose="the classes asked")


def asked_enrolled(
    reader: Reader, neighbours: Neighbours, within: Sequence[int] | None = None, metric: Metric | None = None
) -> tuple[LeaveOneOut, Metric | None]:
    """Enrolled photos asked as if each had not been enrolled, and the metric that they were compared in.

    Args:
        reader: the view to answer in.
        neighbours: lookups in that index.
        within: the classes whose photos are asked, among these classes; None: all.
        metric: the index's, if it has been fitted.
    """
    if reader.n_prototypes() > MOST_MOVED:
        return leave_one_out(reader, neighbours, within), None
    support_ids, class_ids, _, shots_of = reader.asked_supports(_most_asked(within), within)
    support = reader.support_vectors(support_ids)
    prototype_ids, prototypes = reader.changed_vectors("prototype", since=-1)
    owner = reader.prototype_classes(prototype_ids.tolist())
    owners = np.array([owner[i] for i in prototype_ids.tolist()], np.int64)
    _, first, shown = np.unique(shots_of, return_index=True, return_inverse=True)
    near = np.where(class_ids[first, None] == owners, subject_means(support, shown) @ prototypes.T, -np.inf)
    groups = near.argmax(axis=1)[shown]
    if metric is None:
        metric = fit_metric(support, groups, _photos_of_prototypes(groups, owners, reader.class_sizes()))
    if within is None:
        return asked_in(metric, support, groups, prototypes, owners, subjects=shown), metric
    rows = np.flatnonzero(np.isin(owners, within))
    narrowed, groups = replace(metric, counts=metric.counts[rows]), np.searchsorted(rows, groups)
    fitted = None  # all of them, unless the metric saw a sample of the index
    if metric.counts.sum() > MOST_ASKED:
        fitted = np.isin(support_ids, reader.asked_supports(MOST_ASKED)[0])
    return asked_in(narrowed, support, groups, prototypes[rows], owners[rows], fitted, subjects=shown), metric


def _most_asked(within: Sequence[int] | None) -> int:
    return MOST_ASKED if within is None else MOST_ASKED_WITHIN


def _photos_of_prototypes(groups: Int64s, owners: Int64s, class_sizes: dict[int, int]) -> Int64s:
    """From how many photos each prototype is made: those of its class, by the shares of the ones that are here.

    Args:
        groups: (n,) int64, the prototypes of the photos that are here, which may be a sample of all.
        owners: (n_prototypes,) int64, their classes.
        class_sizes: class id -> how many photos are enrolled.

    Returns:
        (n_prototypes,) int64, at least 1.
    """
    here = np.bincount(groups, minlength=len(owners))
    _, places, n_prototypes = np.unique(owners, return_inverse=True, return_counts=True)
    of_class, of_several = np.bincount(places, here)[places], n_prototypes[places]
    sizes = np.array([class_sizes[class_id] for class_id in owners.tolist()], np.float64)
    # A sample may have passed over a prototype, which is no prototype of one photo then: one more for each of a class.
    is_sample = of_class < sizes
    shares = (here + is_sample) / (of_class + is_sample * of_several)
    least = np.where(is_sample & (of_several > 1), np.minimum(MIN_GROUP, sizes), 1)
    return np.maximum(least, np.rint(sizes * shares)).astype(np.int64)


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


def leave_one_out(reader: Reader, neighbours: Neighbours, within: Sequence[int] | None = None) -> LeaveOneOut:
    """Ask enrolled photos, evenly chosen where there are too many, as if they were not enrolled; by plain cosine.

    Args:
        reader: the view to answer in.
        neighbours: lookups in that index.
        within: the classes whose photos are asked, among these classes; None: all.
    """
    n_way = reader.n_classes() if within is None else len(within)
    n_most = min(_most_asked(within), max(500, MOST_COMPARISONS // max(1, n_way)))
    support_ids, class_ids, own, shots_of = reader.asked_supports(n_most, within)
    first = first_shots(shots_of)
    support_ids, class_ids, own = support_ids[first], class_ids[first], own[first]
    n_rivals = min(N_SCORED, n_way) - 1
    rivals = np.full((len(own), max(1, n_rivals)), -np.inf, np.float32)
    if len(own) and n_rivals > 0:
        vectors = reader.support_vectors(support_ids)
        similarities, found = neighbours.classes(reader, vectors, n_rivals + 1, within)
        others = found != class_ids[:, None]
        kept = np.argsort(~others, axis=1, kind="stable")[:, :n_rivals]  # all but the own class, in order
        rivals = np.where(
            np.take_along_axis(others, kept, axis=1), np.take_along_axis(similarities, kept, axis=1), -np.inf
        ).astype(np.float32)
    return LeaveOneOut(class_ids, own, rivals)


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
    # (n, 1 + m); the last rival stands for all classes beyond, as in `classifier.probabilities`.
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
