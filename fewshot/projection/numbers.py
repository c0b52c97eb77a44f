"""Points of a space -> the figures behind its pictures: silhouette, neighbours' agreement, confusion."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.metrics import silhouette_samples
from sklearn.neighbors import NearestNeighbors

from fewshot.projection.spaces import Space
from fewshot.records import Float32s, Int64s


@dataclass(frozen=True, slots=True)
class Numbers:
    """What is measured of the enrolled photos that are drawn, in the embedding itself and not in a picture of it.

    Attributes:
        n: how many photos.
        silhouette: mean over the photos, -1 to 1, by cosine distance: how much nearer a photo is to its own class than
            to the next. None where there is but one class, or one photo in each.
        class_silhouette: label -> its photos' mean; None for a class of one photo.
        neighbour_agreement: the share of photos whose nearest other photo is of their class; None for one photo.
        class_agreement: the share of photos whose nearest class, asked as if they were not enrolled, is their own; of
            the photos that are not alone in their class. None where all are.
        labels: the classes in the order of the confusion matrix.
        confusion: (n_classes, n_classes) int64 counts: rows are the photos' own classes, columns the nearest ones.
        query_agreement: the share of labelled query photos whose nearest class is their label; None without any.
    """

    n: int
    silhouette: float | None
    class_silhouette: dict[str, float | None]
    neighbour_agreement: float | None
    class_agreement: float | None
    labels: tuple[str, ...]
    confusion: Int64s
    query_agreement: float | None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able; the matrix as the list of its cells off the diagonal that are not 0."""
        rows, columns = np.nonzero(self.confusion * (1 - np.eye(len(self.labels), dtype=np.int64)))
        return {
            "photos": self.n,
            "silhouette": self.silhouette,
            "neighbour_agreement": self.neighbour_agreement,
            "class_agreement": self.class_agreement,
            "query_agreement": self.query_agreement,
            "class_silhouette": self.class_silhouette,
            "confused": [
                {"label": self.labels[i], "nearest": self.labels[j], "photos": int(self.confusion[i, j])}
                for i, j in zip(rows.tolist(), columns.tolist(), strict=True)
            ],
        }


def measure(space: Space) -> Numbers:
    """The figures of a space; see `Numbers`."""
    rows = space.rows("support")
    points = [space.points[row] for row in rows]
    vectors = space.vectors[rows]
    labels = sorted({point.label for point in points} | {point.nearest for point in points if point.nearest})
    index = {label: i for i, label in enumerate(labels)}
    own = np.array([index[point.label] for point in points], np.int64)
    samples = _silhouettes(vectors, own)
    by_class: dict[str, float | None] = {}
    for label in dict.fromkeys(point.label for point in points):
        members = own == index[label]
        alone = samples is None or members.sum() < 2
        by_class[label] = None if alone or samples is None else round(float(samples[members].mean()), 4)
    asked = [point for point in points if point.agrees is not None]
    nearest = np.array([index[point.nearest] for point in asked], np.int64)
    truth = np.array([index[point.label] for point in asked], np.int64)
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(matrix, (truth, nearest), 1)
    queries = [point for point in space.points if point.role == "query" and point.agrees is not None]
    return Numbers(
        n=len(points),
        silhouette=None if samples is None else round(float(samples.mean()), 4),
        class_silhouette=by_class,
        neighbour_agreement=_neighbour_agreement(vectors, own),
        class_agreement=_share([point.agrees for point in asked]),
        labels=tuple(labels),
        confusion=matrix,
        query_agreement=_share([point.agrees for point in queries]),
    )


def shared_neighbours(first: Float32s, second: Float32s, k: int) -> float:
    """The share of a photo's k nearest others that two spaces have in common, over all photos: 0 to 1.

    Args:
        first: (n, dim) float32; n above k.
        second: (n, other dim) float32, the same photos in the same order.
        k: how many neighbours.
    """
    both = [nearest_others(vectors, k) for vectors in (first, second)]
    n_shared = sum(len(np.intersect1d(a, b)) for a, b in zip(*both, strict=True))
    return round(n_shared / (k * len(first)), 4)


def nearest_others(vectors: Float32s, k: int) -> Int64s:
    """The rows (n, k) of each vector's nearest others by cosine, nearest first."""
    found: Int64s = NearestNeighbors(n_neighbors=k, metric="cosine").fit(vectors).kneighbors(return_distance=False)
    return found


def _silhouettes(vectors: Float32s, classes: Int64s) -> Float32s | None:
    n_classes = len(np.unique(classes))
    if not 2 <= n_classes < len(classes):
        return None
    samples: Float32s = silhouette_samples(vectors, classes, metric="cosine")
    return samples


def _neighbour_agreement(vectors: Float32s, classes: Int64s) -> float | None:
    if len(vectors) < 2:
        return None
    return round(float((classes[nearest_others(vectors, 1)[:, 0]] == classes).mean()), 4)


def _share(values: Sequence[bool | None]) -> float | None:
    return round(sum(map(bool, values)) / len(values), 4) if values else None
