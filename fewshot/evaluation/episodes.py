"""Labelled embeddings -> few-shot episodes, and what they say of accuracy, rejection, calibration and coverage."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fewshot.classifier.calibration import LeaveOneOut, asked_in, calibrate, student_t_quantile
from fewshot.classifier.metric import Metric, fit_metric
from fewshot.classifier.prototypes import class_prototypes
from fewshot.classifier.scores import familiarity, probabilities
from fewshot.classifier.subjects import grouped
from fewshot.errors import TooFewPhotosError, UsageError
from fewshot.records import Float32s, Int64s

_Z_975 = 1.959963984540054  # the normal distribution's 97.5 % point
_FEWEST_EPISODES = 5  # fewer say too little of how much they differ
_N_BINS = 15
_MOST_NAMED = 20  # classes that a warning names before it counts the rest


@dataclass(frozen=True, slots=True)
class EpisodePlan:
    """How episodes are drawn: `n_way` classes, of each `n_shot` photos to enroll and `n_query` to ask.

    As many photos as there are queries are drawn from classes left out of the episode, as unknown ones.
    """

    n_way: int = 5
    n_shot: int = 5
    n_query: int = 10
    n_episode: int = 600
    coverage: float = 0.9
    seed: int = 0

    @property
    def n_drawn(self) -> int:
        """How many photos of each of its classes an episode draws."""
        return self.n_shot + self.n_query

    def check(self) -> None:
        """Refuse what cannot be drawn, before anything is embedded for it.

        Raises:
            UsageError: a number is too small.
        """
        for name, least in (("n_way", 2), ("n_shot", 1), ("n_query", 1), ("n_episode", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} is {getattr(self, name)}; wanted {least} or more.")


@dataclass(frozen=True, slots=True)
class Mean:
    """A share's mean over episodes with its 95 % interval, None of fewer than 5 episodes.

    The interval (Student's t, from the spread between episodes, cut to [0, 1]) says how much the mean would change with
    other draws from the same photos. It does not say how other classes or other photos would do: those differ by more.
    """

    mean: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class EpisodeReport:
    """What the episodes say. Shares in [0, 1]; None where there are too few classes to leave any out.

    Attributes:
        accuracy: top-1 among the episode's classes.
        auroc: how well familiarity tells an episode's queries of enrolled classes from those of others; 1 is always,
            0.5 never.
        fpr95: the share of strangers let in at the episode's threshold that lets 95 % of its known ones in.
        calibration_error: mean gap between the likeliest class's probability and how often it is right, 15 bins.
        covered: how often the conformal set holds the true label; `set_size`, how many labels it holds.
    """

    plan: EpisodePlan
    n_classes: int
    n_photos: int
    accuracy: Mean
    auroc: Mean | None
    fpr95: Mean | None
    calibration_error: float
    covered: Mean
    set_size: float

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def asked_as_unknown(labels: Sequence[str], class_index: Int64s, plan: EpisodePlan) -> str:
    """Which classes have too few photos for any episode to enroll them, in a sentence; empty if none has.

    Args:
        labels: of the classes, by their number.
        class_index: (n,) int64, the class of each usable photo.
        plan: how episodes are drawn.
    """
    counts = np.bincount(class_index, minlength=len(labels)).tolist()
    few = [f"{label} ({n})" for label, n in zip(labels, counts, strict=True) if n < plan.n_drawn]
    if not few:
        return ""
    has, is_ = ("has", "is") if len(few) == 1 else ("have", "are")
    more = f" and {len(few) - _MOST_NAMED} more" if len(few) > _MOST_NAMED else ""
    return (
        f"{len(few)} of {len(labels)} classes {has} fewer usable photos than the {plan.n_drawn} that an episode draws, "
        f"and {is_} asked as unknown only: {', '.join(few[:_MOST_NAMED])}{more}."
    )


def evaluate_episodes(
    embeddings: Float32s, class_index: Int64s, plan: EpisodePlan, *, on_episode: Callable[[], None] | None = None
) -> EpisodeReport:
    """Draw episodes and answer each as an index would: prototypes, calibration and sets from its supports alone.

    Args:
        embeddings: (n, dim) float32, rows of unit length.
        class_index: (n,) int64 from 0.
        plan: what to draw.
        on_episode: called after each, for progress.

    Raises:
        UsageError: a number of the plan is too small.
        TooFewPhotosError: fewer classes than `n_way` have `n_shot` + `n_query` photos.

    Source:
        Episodes as in Vinyals et al. 2016, arXiv 1606.04080; 600 of them and the interval over episodes as in Snell et
        al. 2017, arXiv 1703.05175.
    """
    plan.check()
    members = [np.flatnonzero(class_index == i) for i in range(int(class_index.max(initial=-1)) + 1)]
    usable = [i for i, rows in enumerate(members) if len(rows) >= plan.n_drawn]
    if len(usable) < plan.n_way:
        raise TooFewPhotosError(
            f"{len(usable)} of {len(members)} classes have the {plan.n_drawn} photos that an episode draws; wanted "
            f"{plan.n_way}.",
            hint=_that_can_be_drawn(sorted(map(len, members), reverse=True), plan),
        )
    rng = np.random.default_rng(plan.seed)
    episodes = []
    for _ in range(plan.n_episode):
        episodes.append(_episode(embeddings, members, usable, plan, rng))
        if on_episode is not None:
            on_episode()
    # Familiarity is compared within an episode: each has a metric, and so a scale, of its own.
    apart = [(each.known, each.strange) for each in episodes if len(each.strange)]
    best = np.concatenate([each.probability for each in episodes])
    right = np.concatenate([each.right for each in episodes])
    return EpisodeReport(
        plan=plan,
        n_classes=len(usable),
        n_photos=len(embeddings),
        accuracy=_mean([float(each.right.mean()) for each in episodes]),
        auroc=_mean([area_under_roc(known, strange) for known, strange in apart]) if apart else None,
        fpr95=_mean([let_in(known, strange) for known, strange in apart]) if apart else None,
        calibration_error=expected_calibration_error(best, right),
        covered=_mean([float(each.covered.mean()) for each in episodes]),
        set_size=float(np.mean([each.set_size for each in episodes])),
    )


def _that_can_be_drawn(counts: Sequence[int], plan: EpisodePlan) -> str:
    """What to ask of classes of so many photos, the largest first, instead of a plan that is too large for them."""
    n_way = min(plan.n_way, sum(count > 1 for count in counts))
    if n_way < 2:
        return "Wanted at least 2 classes of at least 2 photos: lower --n-way, --n-shot or --n-query, or add photos."
    n_photos = counts[n_way - 1]
    n_shot = plan.n_shot if plan.n_shot < n_photos else n_photos // 2
    n_query = min(plan.n_query, n_photos - n_shot)
    return f"These photos are enough for `--n-way {n_way} --n-shot {n_shot} --n-query {n_query}`; or add photos."


def area_under_roc(known: Float32s, strange: Float32s) -> float:
    """How often a known one scores higher than a strange one, ties counting half.

    >>> area_under_roc(np.array([2.0, 3.0], np.float32), np.array([1.0, 2.0], np.float32))
    0.875
    """
    ascending = np.sort(strange)
    below = np.searchsorted(ascending, known, "left")
    up_to = np.searchsorted(ascending, known, "right")
    return float((below + up_to).mean() / 2 / len(strange))


def let_in(known: Float32s, strange: Float32s) -> float:
    """The share of strange ones above the score that 95 % of the known ones reach.

    >>> let_in(np.arange(100, dtype=np.float32), np.array([2.0, 50.0], np.float32))
    0.5
    """
    return float((strange >= np.quantile(known, 0.05)).mean())


def expected_calibration_error(probability: Float32s, right: np.ndarray) -> float:
    """The mean gap between a stated probability and how often it came true, over 15 bins of equal width.

    Source:
        Guo et al. 2017, arXiv 1706.04599, eq. 3.

    >>> expected_calibration_error(np.array([0.9, 0.9], np.float32), np.array([True, False])).__round__(3)
    0.4
    """
    place = np.minimum((probability * _N_BINS).astype(np.int64), _N_BINS - 1)
    gaps = [abs(float(probability[place == i].mean() - right[place == i].mean())) for i in np.unique(place)]
    shares = [float((place == i).mean()) for i in np.unique(place)]
    return sum(share * gap for share, gap in zip(shares, gaps, strict=True))


@dataclass(frozen=True, slots=True)
class _Answers:
    right: np.ndarray
    probability: Float32s
    covered: np.ndarray
    set_size: float
    known: Float32s
    strange: Float32s


def _episode(
    embeddings: Float32s, members: list[Int64s], usable: list[int], plan: EpisodePlan, rng: np.random.Generator
) -> _Answers:
    chosen = rng.choice(usable, plan.n_way, replace=False)
    drawn = [rng.choice(members[i], plan.n_shot + plan.n_query, replace=False) for i in chosen]
    support = [embeddings[rows[: plan.n_shot]] for rows in drawn]
    query = np.concatenate([embeddings[rows[plan.n_shot :]] for rows in drawn])
    true = np.repeat(np.arange(plan.n_way), plan.n_query)
    others = np.setdiff1d(np.arange(len(members)), chosen)
    pool = np.concatenate([members[i] for i in others]) if len(others) else np.zeros(0, np.int64)
    strange = embeddings[rng.choice(pool, min(len(pool), len(query)), replace=False)]

    learnt = learn_classes(support)
    similarities = learnt.similarities(query)
    asked = learnt.left_out() if plan.n_shot > 1 else nothing_asked(plan.n_way)
    found = calibrate(asked, plan.n_way)
    order = np.argsort(-similarities, axis=1, kind="stable")
    ordered = np.take_along_axis(similarities, order, axis=1)
    lead = similarities - np.where(order[:, :1] == np.arange(plan.n_way), ordered[:, 1:2], ordered[:, :1])
    inside = lead >= found.needed_margins(np.arange(plan.n_way), plan.coverage)
    return _Answers(
        right=order[:, 0] == true,
        probability=probabilities(ordered, plan.n_way, found.scale)[:, 0],
        covered=inside[np.arange(len(true)), true],
        set_size=float(inside.sum(axis=1).mean()),
        known=familiarity(ordered),
        strange=familiarity(-np.sort(-learnt.similarities(strange), axis=1)),
    )


@dataclass(frozen=True, slots=True)
class LearntClasses:
    """What an index has of enrolled classes, without an index.

    Attributes:
        metric: what they are compared in.
        support: (n_support, dim) float32, and `groups`: (n_support,) int64, rows of `prototypes`.
        subjects: (n_support,) int64, what each of them shows.
        prototypes: (n_prototypes, dim) float32, and `owners`: (n_prototypes,) int64, their classes from 0.
    """

    metric: Metric
    support: Float32s
    groups: Int64s
    subjects: Int64s
    prototypes: Float32s
    owners: Int64s

    def left_out(self) -> LeaveOneOut:
        """The supports, asked as if each had not been enrolled."""
        return asked_in(
            self.metric,
            self.support,
            self.groups,
            self.prototypes,
            self.owners,
            subjects=self.subjects,
        )

    def similarities(self, vectors: Float32s) -> Float32s:
        """Each vector's similarity to each class's nearest prototype: (n, n_way) float32."""
        cosines = self.metric(vectors) @ self.metric.placed(self.prototypes).T
        first = np.flatnonzero(np.diff(self.owners, prepend=-1))
        nearest: Float32s = np.maximum.reduceat(cosines, first, axis=1)
        return nearest


def learn_classes(support: list[Float32s]) -> LearntClasses:
    """Enroll classes as an index does: prototypes, several where photos form groups, and the photos' own metric.

    Args:
        support: for each class (n_shot, dim) float32, rows of unit length.
    """
    groups, shown = zip(*(grouped(each) for each in support), strict=True)
    together, counts = _numbered_through(groups)
    everything = np.concatenate(support)
    return LearntClasses(
        metric=fit_metric(everything, together),
        support=everything,
        groups=together,
        subjects=_numbered_through(shown)[0],
        prototypes=class_prototypes(everything, together, sum(counts)),
        owners=np.repeat(np.arange(len(support)), counts),
    )


def _numbered_through(parts: Sequence[Int64s]) -> tuple[Int64s, list[int]]:
    """Numbers from 0 in each part -> numbers from 0 in all together, and how many there are in each part."""
    counts = [int(part.max()) + 1 for part in parts]
    starts = np.cumsum([0, *counts[:-1]])
    return np.concatenate([part + start for part, start in zip(parts, starts, strict=True)]), counts


def nothing_asked(n_way: int) -> LeaveOneOut:
    """What leave-one-out finds where each class has a single photo."""
    return LeaveOneOut(np.zeros(0, np.int64), np.zeros(0, np.float32), np.zeros((0, n_way - 1), np.float32))


def _mean(values: list[float]) -> Mean:
    mean = float(np.mean(values))
    if len(values) < _FEWEST_EPISODES:
        return Mean(mean, None, None)
    half = student_t_quantile(_Z_975, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
    return Mean(mean, max(0.0, mean - half), min(1.0, mean + half))
