"""Similarities of a query to the classes -> the probability of each, and how familiar the query is."""

import numpy as np

from fewshot.records import Float32s

# logits = scale * cosine, where an index has too few photos to fit its own (calibration.py).
SOFTMAX_SCALE = 32.0
# The nearest prototypes whose similarities enter a probability exactly; those beyond are bounded, see `probabilities`.
N_SCORED = 256


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


def familiarity(similarities: Float32s) -> Float32s:
    """How much a query is like one enrolled class and no other: its best cosine plus the lead over the next.

    A photo of another crop is far from everything; a sister disease is near a class, but about as near to others. The
    sum tells both from a true query better than either part alone does (docs/log.md).

    Args:
        similarities: (n_query, n_given) float32, highest first; -inf where there is no class.

    Returns:
        (n_query,) float32. With a single class, twice its cosine.
    """
    best = similarities[:, 0]
    second = similarities[:, 1] if similarities.shape[1] > 1 else np.zeros_like(best)
    found: Float32s = (2 * best - np.where(np.isfinite(second), second, 0.0)).astype(np.float32)
    return found
