"""Support embeddings of a class -> its prototypes, one or several where its photos form groups."""

import numpy as np

from fewshot.errors import PrototypeError
from fewshot.records import Float32s, Int64s
from fewshot.transforms import group_sums

# When a class gets several prototypes (`support_groups`). Chosen on classes merged from two held-out ones, docs/log.md.
SPLIT_GAIN = 0.02
MIN_GROUP = 3
MAX_PROTOTYPES = 4


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
    sums = group_sums(support, class_index, n_way)
    norms = np.linalg.norm(sums, axis=1)
    if n_way and norms.min() < 1e-6:
        raise PrototypeError(
            f"the support embeddings of class {int(np.argmin(norms))} cancel out: no direction is left."
        )
    prototypes: Float32s = (sums / norms[:, None]).astype(np.float32)
    return prototypes


def own_similarities(
    support: Float32s, groups: Int64s | None = None, subjects: Int64s | None = None
) -> Float32s | None:
    """The cosine of each support to its class's nearest prototype, made *without* it: what a true query would score.

    Args:
        support: (n_support, dim) float32, rows of unit length, all of one class.
        groups: (n_support,) int64 from 0, which prototype each support belongs to; None: there is one prototype.
        subjects: (n_support,) int64 from 0, what each support shows (`subjects.subjects`): prototypes are made without
            all of that; None: each shows another.

    Returns:
        (n_support,) float32 in [-1, 1], or None for a class of fewer than two supports.
    """
    if len(support) < 2:
        return None
    if groups is None:
        groups = np.zeros(len(support), np.int64)
    if subjects is None:
        subjects = np.arange(len(support))
    n_subjects = int(subjects.max()) + 1
    best = np.full(len(support), -np.inf)
    for group in range(int(groups.max()) + 1):
        inside = groups == group
        same = group_sums(support[inside], subjects[inside], n_subjects)[subjects]  # (n_support, dim)
        others = support[inside].sum(axis=0, dtype=np.float64) - same
        norms = np.maximum(np.linalg.norm(others, axis=1), 1e-12)
        cosines = (others * support).sum(axis=1) / norms
        # A prototype that is this support's subject alone is not there without it.
        cosines[np.bincount(subjects[inside], minlength=n_subjects)[subjects] == inside.sum()] = -np.inf
        best = np.maximum(best, cosines)
    similarities: Float32s = best.astype(np.float32)
    return similarities


def support_groups(support: Float32s) -> Int64s:
    """Which of a class's photos belong together: one group, or several where the photos say so.

    Photos of one disease taken in the field and in the laboratory, or of leaf and fruit, lie in separate places, and
    their common mean lies in none. A class is split while that brings each photo clearly nearer to a prototype made
    without it (`own_similarities`), by more than `SPLIT_GAIN` on average. A group without sense loses by that, because
    the mean of fewer photos is less sure. Other classes have no say, so the order of enrolment has none either.

    Args:
        support: (n_support, dim) float32, rows of unit length, all of one class.

    Returns:
        (n_support,) int64: groups numbered from 0 by their first photo, at most `MAX_PROTOTYPES`, each of at least
        `MIN_GROUP` photos unless there is only one.
    """
    groups = np.zeros(len(support), np.int64)
    similarities = own_similarities(support)
    for n_groups in range(2, min(MAX_PROTOTYPES, len(support) // MIN_GROUP) + 1):
        assert similarities is not None
        tried = _nearest_means(support, n_groups)
        if np.bincount(tried, minlength=n_groups).min() < MIN_GROUP:
            continue
        after = own_similarities(support, tried)
        assert after is not None
        if after.mean() - similarities.mean() > SPLIT_GAIN:
            groups, similarities = tried, after
    return numbered_by_first(groups)


def numbered_by_first(groups: Int64s) -> Int64s:
    """The same groups, numbered from 0 in the order of their first members.

    >>> numbered_by_first(np.array([7, 7, 2, 9, 2])).tolist()
    [0, 0, 1, 2, 1]
    """
    _, first, place = np.unique(groups, return_index=True, return_inverse=True)
    return np.asarray(np.argsort(np.argsort(first))[place], np.int64)


def _nearest_means(support: Float32s, n_groups: int) -> Int64s:
    """Spherical k-means (Dhillon & Modha 2001) from the photos that lie farthest apart; no chance in it."""
    mean = support.mean(axis=0)
    chosen = [int(np.argmin(support @ mean))]
    while len(chosen) < n_groups:
        chosen.append(int(np.argmin((support @ support[chosen].T).max(axis=1))))
    centres = support[chosen]
    groups = np.full(len(support), -1, np.int64)
    for _ in range(50):
        before, groups = groups, (support @ centres.T).argmax(axis=1)
        if np.array_equal(before, groups):
            break
        for group in np.unique(groups):
            total = support[groups == group].sum(axis=0)
            centres[group] = total / max(float(np.linalg.norm(total)), 1e-12)
    return groups
