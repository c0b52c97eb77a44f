"""Which photos of a class are several shots of one plant: left out singly, they would flatter what is learnt.

Asked as if it were not enrolled, a photo whose sister is there is recognised by her. What an index learns from that,
what is unknown and how sure an answer is, holds for plants that are enrolled and for no others (docs/log.md). So a
plant is left out whole, with all its shots.
"""

import numpy as np

from fewshot.classifier.prototypes import class_prototypes, numbered_by_first, support_groups
from fewshot.records import Float32s, Int64s

# How far photos of other plants are: what a fifth of all photos is nearer than, as a quarter of the photos see it. Not
# the median distance between two: of field and laboratory photos that is the way from the one place to the other.
NEIGHBOURS_SHARE, LEAST_SHARE = 0.2, 0.25
# A class comes in shots of fewer plants where three in four photos have another one within this part of it: 0.35 to
# 0.47 for two to four shots of each plant that differ a little, 0.70 and more in 1,098 sets of others (docs/log.md).
SHOTS_APART, SHOTS_SHARE = 0.65, 0.75
# Shots of one plant are then those within this part of it of the shot that has most around it.
ONE_SUBJECT = 0.75
FEWEST_PHOTOS = 6
# So many photos, evenly chosen, say how far two of a class lie apart.
MOST_MEASURED = 200
_ROWS_AT_ONCE = 1000


def subjects(support: Float32s) -> Int64s:
    """What each photo of a class shows: the same number for shots of one plant, slide or place.

    Told by how alike photos are, and only where a class as a whole comes in such sets: of different plants, two may
    well look alike.

    Args:
        support: (n_support, dim) float32, rows of unit length, all of one class.

    Returns:
        (n_support,) int64, numbered from 0 by the first photo; all different, or at least two.

    Source:
        Butina 1999, J. Chem. Inf. Comput. Sci. 39(4), 747-750: what has most neighbours takes them, then what of the
        others has most.
    """
    n = len(support)
    alone = np.arange(n)
    reach = _reach(support) if n >= FEWEST_PHOTOS else None
    if reach is None:
        return alone
    near = np.empty((n, n), np.bool_)
    for start in range(0, n, _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        near[rows] = support[rows] @ support.T >= 1 - reach
    found = np.full(n, -1)
    for row in np.argsort(-near.sum(axis=1), kind="stable").tolist():
        if found[row] < 0:
            found[near[row] & (found < 0)] = row
            found[row] = row
    return alone if (found == found[0]).all() else numbered_by_first(found)


def _reach(support: Float32s) -> float | None:
    """How far shots of one subject lie apart at most; None: photos do not come in sets."""
    n = len(support)
    rows = np.unique(np.linspace(0, n - 1, min(n, MOST_MEASURED)).astype(np.int64))
    distances = 1 - support[rows] @ support.T
    distances[np.arange(len(rows)), rows] = np.inf  # to itself
    distances = np.sort(distances, axis=1)[:, :-1]
    others = float(np.quantile(np.quantile(distances, NEIGHBOURS_SHARE, axis=1), LEAST_SHARE))
    nearest = float(np.quantile(distances[:, 0], SHOTS_SHARE))
    return ONE_SUBJECT * others if nearest < SHOTS_APART * others else None


def subjects_of_classes(support: Float32s, class_ids: Int64s) -> Int64s:
    """What each photo of several classes shows, see `subjects`.

    Args:
        support: (n_support, dim) float32, rows of unit length.
        class_ids: (n_support,) int64.

    Returns:
        (n_support,) int64, numbered from 0 by the first photo; photos of two classes never have the same.
    """
    first = np.arange(len(support))  # the row of the first photo of each one's subject
    order = np.argsort(class_ids, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(class_ids[order])) + 1):
        _, place, shown = np.unique(subjects(support[rows]), return_index=True, return_inverse=True)
        first[rows] = rows[place[shown]]
    return np.asarray(np.unique(first, return_inverse=True)[1], np.int64)


def first_shots(shown: Int64s) -> Int64s:
    """The row of the first photo of each subject, in the order of their numbers.

    >>> first_shots(np.array([0, 0, 1, 0, 2])).tolist()
    [0, 2, 4]
    """
    return np.asarray(np.unique(shown, return_index=True)[1], np.int64)


def grouped(support: Float32s) -> tuple[Int64s, Int64s]:
    """Which of a class's photos belong to one prototype (`prototypes.support_groups`), and what each shows.

    A group needs several plants, and several shots of one are never parted.

    Args:
        support: (n_support, dim) float32, rows of unit length, all of one class.

    Returns:
        (n_support,) int64 both, numbered from 0 by the first photo.
    """
    shown = subjects(support)
    return support_groups(subject_means(support, shown))[shown], shown


def subject_means(support: Float32s, shown: Int64s) -> Float32s:
    """One embedding of unit length for each subject: (n_subjects, dim) float32, in the order of their numbers."""
    n_subjects = int(shown.max(initial=-1)) + 1
    return support if n_subjects == len(support) else class_prototypes(support, shown, n_subjects)
