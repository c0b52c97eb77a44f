"""Predictions -> metrics; embeddings -> prototype accuracy, with its interval."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from fewshot.classifier.prototypes import class_prototypes
from fewshot.errors import PrototypeError, UsageError
from fewshot.records import Float32s, Int64s

_Z_975 = 1.959963984540054  # the normal distribution's 97.5 % point


@dataclass(frozen=True, slots=True)
class Interval:
    """A share with the interval that covers the true one in 95 of 100 such measurements; all in [0, 1]."""

    share: float
    low: float
    high: float
    n: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ClassMetrics:
    """Precision, recall and F1 of one class, in [0, 1], and how many photos show it."""

    label: str
    precision: float
    recall: float
    f1: float
    n: int


@dataclass(frozen=True, slots=True)
class Metrics:
    """What a set of predictions is worth. Shares in [0, 1]; precision, recall and F1 weighted by class size.

    `confusion` is (n_classes, n_classes) counts: rows are true classes, columns predicted ones, both as in `classes`.
    """

    accuracy: Interval
    precision: float
    recall: float
    f1: float
    classes: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class PrototypeAccuracy:
    """Nearest-prototype accuracy on queries; `within_crop` counts only the classes of the query's own crop."""

    top1: Interval
    top3: Interval
    within_crop: Interval

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return asdict(self)


def wilson_interval(n_right: int, n: int) -> Interval:
    """The share of right answers with its 95 % Wilson interval, which stays in [0, 1] and works for small n.

    Raises:
        UsageError: no answers, or more right ones than answers.

    Source:
        Wilson 1927, without continuity correction.

    >>> interval = wilson_interval(98, 98)
    >>> round(interval.low, 3), interval.high
    (0.962, 1.0)
    """
    if not 0 <= n_right <= n or n == 0:
        raise UsageError(f"{n_right} right answers of {n} make no share.")
    share, square = n_right / n, _Z_975**2
    middle = (share + square / (2 * n)) / (1 + square / n)
    half = _Z_975 / (1 + square / n) * math.sqrt(share * (1 - share) / n + square / (4 * n**2))
    # At the ends the formula gives exactly 0 and 1; rounding does not.
    low = 0.0 if n_right == 0 else middle - half
    high = 1.0 if n_right == n else middle + half
    return Interval(share, low, high, n)


def crop_of(label: str) -> str:
    """The crop a label names: what stands before its first '-'; the whole label where there is none.

    >>> crop_of("corn-common-rust"), crop_of("fire")
    ('corn', 'fire')
    """
    return label.partition("-")[0]


def measure(true: Int64s, predicted: Int64s, labels: Sequence[str]) -> Metrics:
    """Accuracy, weighted precision, recall and F1, the same for each class, and the confusion matrix.

    A class that is never predicted has precision 0.

    Args:
        true: (n,) int64, class index of each photo.
        predicted: (n,) int64, class index answered.
        labels: the class at each index.

    Raises:
        UsageError: no photos, arrays of different length, or an index without a label.
    """
    if len(true) == 0 or true.shape != predicted.shape or true.ndim != 1:
        raise UsageError(f"{true.shape} true and {predicted.shape} predicted classes cannot be compared.")
    highest, lowest = max(true.max(), predicted.max()), min(true.min(), predicted.min())
    if lowest < 0 or highest >= len(labels):
        raise UsageError(f"class indices run from {lowest} to {highest}; there are {len(labels)} labels.")
    every = np.arange(len(labels))
    precision, recall, f1, n = precision_recall_fscore_support(true, predicted, labels=every, zero_division=0.0)
    weighted = [float(np.average(values, weights=n)) for values in (precision, recall, f1)]
    counts = confusion_matrix(true, predicted, labels=every)
    return Metrics(
        accuracy=wilson_interval(int((true == predicted).sum()), len(true)),
        precision=weighted[0],
        recall=weighted[1],
        f1=weighted[2],
        classes=tuple(
            ClassMetrics(label, float(precision[i]), float(recall[i]), float(f1[i]), int(n[i]))
            for i, label in enumerate(labels)
        ),
        confusion=tuple(tuple(int(count) for count in row) for row in counts),
    )


def ranks(similarity: Float32s, true: Int64s) -> Int64s:
    """How many other classes are as similar to each photo as its own, or more: (n,) int64, 0 for a right answer.

    A tie with another class counts against the photo, and so does a similarity that is NaN: an embedder that gives the
    same to all, or nothing, is not right.

    Args:
        similarity: (n, n_classes), higher is better.
        true: (n,) int64.
    """
    own = similarity[np.arange(len(true)), true][:, None]
    as_good: Int64s = (~(similarity < own)).sum(axis=1) - 1  # without itself
    return as_good


def top_k_share(similarity: Float32s, true: Int64s, k: int) -> Interval:
    """The share of photos whose class is among the `k` most similar; see `ranks`.

    Args:
        similarity: (n, n_classes), higher is better.
        true: (n,) int64.
        k: how many answers count; at least 1.
    """
    return wilson_interval(int((ranks(similarity, true) < k).sum()), len(true))


def prototype_accuracy(
    gallery: Float32s, gallery_labels: Sequence[str], queries: Float32s, query_labels: Sequence[str]
) -> PrototypeAccuracy:
    """How well the nearest prototype by cosine names the queries.

    Args:
        gallery: (n_support, dim) float32, any length but zero; their labels make the classes.
        gallery_labels: n_support labels.
        queries: (n, dim) float32.
        query_labels: n labels.

    Raises:
        PrototypeError: a query's label has no support, a class's supports cancel out, or an embedding is not finite
            or of length zero.
        UsageError: no queries.
    """
    labels = sorted(set(gallery_labels))
    index = {label: i for i, label in enumerate(labels)}
    strangers = sorted(set(query_labels) - set(labels))
    if strangers:
        raise PrototypeError(f"no support photo shows {strangers[0]!r}, so no query can be named so.")
    members = np.array([index[label] for label in gallery_labels], dtype=np.int64)
    prototypes = class_prototypes(_unit(gallery, "a support"), members, len(labels))
    similarity = _unit(queries, "a query") @ prototypes.T
    true = np.array([index[label] for label in query_labels], dtype=np.int64)
    crops = np.array([crop_of(label) for label in labels])
    in_crop = crops[None, :] == crops[true][:, None]  # (n, n_classes)
    return PrototypeAccuracy(
        top1=top_k_share(similarity, true, 1),
        top3=top_k_share(similarity, true, 3),
        within_crop=top_k_share(np.where(in_crop, similarity, np.float32(-np.inf)), true, 1),
    )


def _unit(vectors: Float32s, what: str) -> Float32s:
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not np.isfinite(length).all() or (length < 1e-12).any():
        raise PrototypeError(f"the embedding of {what} is of length zero or not finite: it has no direction.")
    unit: Float32s = (vectors / length).astype(np.float32)
    return unit
