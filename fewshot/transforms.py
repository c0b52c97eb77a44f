"""Statistics of the classes that a backbone was trained on -> the map that whitens its embeddings."""

import hashlib
import json
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from fewshot.errors import WeightsDamagedError
from fewshot.records import Float32s, Int64s

# Chosen on classes held out of training (docs/log.md).
POWER = 0.5
# The least share of a covariance that is replaced by its mean variance in every direction. New classes spread less like
# the training classes than more photos of those could tell, and an index's own metric learns what is left.
SHRINKAGE = 0.75


@dataclass(frozen=True, slots=True)
class ClassStatistics:
    """How a backbone's levelled embeddings (see `level`) lie around their classes' means.

    `power` is what they were levelled with. `mean` is (dim,) float32, over all photos. `covariance` is (dim, dim)
    float32, around the class means, shrunk: a share of `shrinkage` of it is replaced by its mean variance in every
    direction.
    """

    mean: Float32s
    covariance: Float32s
    shrinkage: float
    n_photos: int
    n_classes: int
    power: float = POWER

    @property
    def dim(self) -> int:
        """The embedding's length."""
        return len(self.mean)


@dataclass(frozen=True, slots=True)
class Transform:
    """Level, centre, then whiten: a cosine between transformed embeddings compares as shared-covariance LDA does.

    `mean` is (dim,) float32; `matrix` is (dim, dim) float32; for `power` see `level`.
    """

    mean: Float32s
    matrix: Float32s
    power: float

    def __call__(self, embeddings: Float32s) -> Float32s:
        """(n, dim) float32 -> (n, dim) float32, rows of any length both."""
        moved: Float32s = np.matmul(level(embeddings, self.power) - self.mean, self.matrix, dtype=np.float32)
        return moved

    def to_bytes(self) -> bytes:
        """The two arrays, one after the other."""
        return self.mean.tobytes() + self.matrix.tobytes()

    @classmethod
    def from_bytes(cls, data: bytes, dim: int, power: float) -> "Transform":
        """What `to_bytes` gave for embeddings of length `dim`; shares the memory of `data`."""
        values = np.frombuffer(data, np.float32)
        return cls(values[:dim], values[dim:].reshape(dim, dim), power)


def level(embeddings: Float32s, power: float) -> Float32s:
    """Raise each component to `power`, keeping its sign, and scale rows to unit length.

    Below 1 it evens out a few large components, which pooled activations have: their distribution comes nearer to the
    Gaussian that whitening takes for granted.

    Args:
        embeddings: (n, dim) float32, rows of any length but 0.
        power: 1 leaves the directions as they are.

    Source:
        Tukey's ladder of powers, for few-shot features: Yang et al. 2021, arXiv 2101.06395, eq. 3.

    >>> level(np.array([[9.0, -16.0]], np.float32), 0.5).round(3).tolist()
    [[0.6000000238418579, -0.800000011920929]]
    """
    raised = embeddings if power == 1 else np.sign(embeddings) * np.abs(embeddings) ** np.float32(power)
    return unit_rows(raised)


def unit_rows(rows: Float32s) -> Float32s:
    """(n, dim) float32 scaled to rows of unit length; a row of zeros stays one."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit: Float32s = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return unit


def group_sums(rows: Float32s, groups: Int64s, n_groups: int) -> np.ndarray:
    """The sum of each group's rows; zeros for a group without any.

    Args:
        rows: (n, dim) float32 or float64.
        groups: (n,) int64, each in [0, n_groups).
        n_groups: how many there are.

    Returns:
        (n_groups, dim) float64.

    >>> group_sums(np.array([[1, 2], [3, 4], [5, 6]], np.float32), np.array([2, 0, 2]), 3).tolist()
    [[3.0, 4.0], [0.0, 0.0], [6.0, 8.0]]
    """
    sums = np.zeros((n_groups, rows.shape[1]), np.float64)
    counts = np.bincount(groups, minlength=n_groups)
    there = counts > 0
    if len(rows):
        starts = np.cumsum(counts) - counts
        order = np.argsort(groups, kind="stable")
        # `np.add.at` says the same in one line and takes twenty times as long.
        sums[there] = np.add.reduceat(rows[order], starts[there], axis=0, dtype=np.float64)
    return sums


def measure_statistics(
    embeddings: Float32s, class_index: Int64s, power: float = POWER, shrinkage: float = SHRINKAGE
) -> ClassStatistics:
    """Mean and within-class covariance of levelled embeddings, shrunk.

    The *within*-class covariance, never the total one: the total one counts what separates classes as noise.

    Args:
        embeddings: (n, dim) float32, rows of any length but 0.
        class_index: (n,) int64 from 0; every class has a photo.
        power: see `level`.
        shrinkage: at least so much, in [0, 1]; more where the photos are too few for that.

    Source:
        Ledoit & Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices", for the
        shrinkage that the number of photos asks for; scikit-learn computes it.
    """
    from sklearn.covariance import ledoit_wolf_shrinkage

    unit = level(embeddings, power).astype(np.float64)
    n_classes = int(class_index.max()) + 1
    means = np.stack([unit[class_index == i].mean(axis=0) for i in range(n_classes)])
    around = unit - means[class_index]
    covariance = around.T @ around / len(around)
    dim = len(covariance)
    shrinkage = max(shrinkage, float(ledoit_wolf_shrinkage(around, assume_centered=True)))
    shrunk = (1 - shrinkage) * covariance + shrinkage * np.trace(covariance) / dim * np.eye(dim)
    return ClassStatistics(
        unit.mean(axis=0).astype(np.float32), shrunk.astype(np.float32), shrinkage, len(unit), n_classes, power
    )


def whitening(statistics: ClassStatistics) -> Transform:
    """The map after which the statistics' classes would spread alike in every direction.

    Source:
        Fisher's linear discriminant with one covariance for all classes; of the maps that whiten, the symmetric one
        (ZCA), which moves the embeddings least.

    >>> oval = ClassStatistics(np.zeros(2, np.float32), np.diag([4.0, 1.0]).astype(np.float32), 0.0, 9, 3, power=1)
    >>> whitening(oval)(np.array([[0.6, 0.8]], np.float32)).round(3).tolist()
    [[0.30000001192092896, 0.800000011920929]]

    Classes whose photos do not differ say nothing: then no direction is changed.
    """
    values, vectors = np.linalg.eigh(statistics.covariance.astype(np.float64))
    if values.max() <= 0:
        return Transform(statistics.mean, np.eye(statistics.dim, dtype=np.float32), statistics.power)
    scale = 1 / np.sqrt(np.maximum(values, np.finfo(np.float32).eps * values.max()))
    matrix = np.ascontiguousarray((vectors * scale) @ vectors.T, np.float32)
    return Transform(statistics.mean, matrix, statistics.power)


def pack_statistics(statistics: ClassStatistics) -> bytes:
    """Statistics as a small safetensors file: standard deviations, and the correlations' lower triangle in float16."""
    deviation = np.sqrt(np.diag(statistics.covariance).astype(np.float64))
    divisor = np.where(deviation > 0, deviation, 1.0)  # what does not vary is correlated with nothing
    correlation = statistics.covariance / np.outer(divisor, divisor)
    arrays = {
        "mean": statistics.mean,
        "deviation": deviation.astype(np.float32),
        "correlation": correlation[np.tril_indices(statistics.dim, -1)].astype(np.float16),
    }
    facts = {
        "shrinkage": statistics.shrinkage,
        "n_photos": statistics.n_photos,
        "n_classes": statistics.n_classes,
        "power": statistics.power,
    }
    return save(arrays, {"statistics": json.dumps(facts)})


def unpack_statistics(data: bytes, name: str) -> ClassStatistics:
    """What `pack_statistics` wrote; `name` is the file's, for the message.

    Raises:
        WeightsDamagedError: the bytes are no such file.
    """
    try:
        arrays = load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        facts = json.loads(header["__metadata__"]["statistics"])
        mean, deviation = arrays["mean"], arrays["deviation"].astype(np.float64)
        correlation = np.eye(len(mean))
        lower = np.tril_indices(len(mean), -1)
        correlation[lower] = arrays["correlation"]
        correlation.T[lower] = arrays["correlation"]
        covariance = (correlation * np.outer(deviation, deviation)).astype(np.float32)
        return ClassStatistics(
            mean,
            covariance,
            float(facts["shrinkage"]),
            int(facts["n_photos"]),
            int(facts["n_classes"]),
            float(facts["power"]),
        )
    except (SafetensorError, KeyError, TypeError, ValueError, IndexError) as error:
        raise WeightsDamagedError(
            f"the class statistics {name} cannot be read: {error}.", hint="Train again, or get the file again."
        ) from error


def statistics_sha256(data: bytes) -> str:
    """The name of a packed statistics' content."""
    return hashlib.sha256(data).hexdigest()
