"""Enrolled photos asked as if they were not enrolled: what an index's own photos say of its answers."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from fewshot.classifier.calibration import LeaveOneOut, asked_in
from fewshot.classifier.metric import Metric, fit_metric
from fewshot.classifier.prototypes import MIN_GROUP
from fewshot.classifier.scores import N_SCORED
from fewshot.classifier.subjects import first_shots, subject_means
from fewshot.gallery.neighbours import Neighbours
from fewshot.records import Int64s
from fewshot.store import Reader

# At most so many photos are asked, and fewer where there are many prototypes to ask among.
MOST_ASKED, MOST_COMPARISONS = 4000, 10_000_000
# A question that is narrowed to some classes is calibrated while it waits.
MOST_ASKED_WITHIN = 1000
# An index of more prototypes compares by plain cosine: moving them all anew after each change would take too long.
MOST_MOVED = 2000


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
