"""Support + query embeddings -> scores, probability, rejection. Pure numpy, and nothing here reads or writes."""

from dataclasses import dataclass

import numpy as np

from fewshot.errors import PrototypeError
from fewshot.records import Float32s, Int64s

# logits = scale * cosine; the least negative log-likelihood on base/train (benchmarks/constants.py).
SOFTMAX_SCALE = 48.0
# A query is unknown if its best class is less similar than all but this part of the enrolled photos are to their own.
REJECTED_PART = 0.05
# The nearest prototypes whose similarities enter a probability exactly; those beyond are bounded, see `probabilities`.
N_SCORED = 256


def class_prototypes(support: Float32s, class_index: Int64s, n_way: int) -> Float32s:
    """Average each class's support embeddings into one unit-length prototype.

    Args:
        support: (n_support, dim) float32, rows of unit length.
        class_index: (n_support,) int64, each in [0, n_way).
        n_way: number of classes. Given, not counted from `class_index`, so that a class without images is an error
            and not a row of NaN.

    Returns:
        (n_way, dim) float32, rows of unit length; a dot product with a query embedding is a cosine.

    Raises:
        PrototypeError: a class has no support image, or its embeddings cancel out.

    Source:
        Snell et al. 2017, eq. 1, arXiv 1703.05175. They score by squared Euclidean distance; we renormalise and
        score by cosine.

    >>> support = np.array([[1, 0], [0, 1]], np.float32)
    >>> class_prototypes(support, np.array([0, 0]), n_way=1).round(3).tolist()
    [[0.7070000171661377, 0.7070000171661377]]
    """
    counts = np.bincount(class_index, minlength=n_way)
    assert len(counts) == n_way, f"class_index goes up to {len(counts) - 1}; wanted at most {n_way - 1}"
    if n_way and counts.min() == 0:
        raise PrototypeError(f"class {int(np.argmin(counts))} of {n_way} has no support image.")
    sums = np.zeros((n_way, support.shape[1]), np.float64)
    np.add.at(sums, class_index, support)
    norms = np.linalg.norm(sums, axis=1)
    if n_way and norms.min() < 1e-6:
        raise PrototypeError(
            f"the support embeddings of class {int(np.argmin(norms))} cancel out: no direction is left."
        )
    prototypes: Float32s = (sums / norms[:, None]).astype(np.float32)
    return prototypes


def own_similarities(support: Float32s) -> Float32s | None:
    """The cosine of each support to the prototype of the *others* of its class: what a true query would score.

    Args:
        support: (n_support, dim) float32, rows of unit length, all of one class.

    Returns:
        (n_support,) float32 in [-1, 1], or None for a class of fewer than two supports.
    """
    if len(support) < 2:
        return None
    others = support.sum(axis=0, dtype=np.float64) - support  # (n_support, dim): each row's sum without itself
    norms = np.maximum(np.linalg.norm(others, axis=1), 1e-12)
    similarities: Float32s = ((others * support).sum(axis=1) / norms).astype(np.float32)
    return similarities


def probabilities(similarities: Float32s, n_way: int, scale: float = SOFTMAX_SCALE) -> Float32s:
    """Softmax over classes of `scale * similarity`.

    Where only the nearest classes are given, every class beyond them is counted as if it were as similar as the last
    one given: a bound, so that a probability is never overstated.

    Args:
        similarities: (n_query, n_given) float32, highest first, n_given <= n_way; -inf where there is no class.
        n_way: number of classes asked.
        scale: what a cosine is multiplied with to become a logit.

    Returns:
        (n_query, n_given) float32, each in [0, 1].

    >>> probabilities(np.array([[0.9, 0.9]], np.float32), n_way=2).tolist()
    [[0.5, 0.5]]
    """
    best = np.where(np.isfinite(similarities[:, :1]), similarities[:, :1], 0.0)
    weights = np.exp(scale * (similarities.astype(np.float64) - best))  # (n_query, n_given); 0 where there is no class
    beyond = max(0, n_way - similarities.shape[1]) * weights[:, -1:]
    total = weights.sum(axis=1, keepdims=True) + beyond
    shares: Float32s = (weights / np.where(total > 0, total, 1.0)).astype(np.float32)
    return shares


@dataclass(frozen=True, slots=True)
class Rejection:
    """Below which similarity to its best class a query is unknown. `threshold` None: too little is enrolled to say."""

    threshold: float | None

    def is_unknown(self, similarity: float) -> bool:
        """Whether a query with this best similarity belongs to no enrolled class."""
        return self.threshold is not None and similarity < self.threshold

    def explain(self, label: str, similarity: float) -> str:
        """A sentence for the user: what was found, against what."""
        if self.threshold is None:
            return f"most like {label}; with one photo a class there is no telling what would be unlike"
        side = "below" if self.is_unknown(similarity) else "above"
        return f"similarity {similarity:.2f} to {label}, {side} the threshold {self.threshold:.2f} of this index"
