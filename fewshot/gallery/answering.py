"""Embeddings and a view of an index -> predictions."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase

import numpy as np

from fewshot.classifier import scores
from fewshot.classifier.calibration import Calibration
from fewshot.classifier.metric import Metric
from fewshot.embedder import Outcome
from fewshot.errors import EmptyIndexError, NoFittingClassError, did_you_mean
from fewshot.gallery.neighbours import Neighbours
from fewshot.records import UNKNOWN, Float32s, Int64s, Match, Prediction, Question, Refused
from fewshot.store import Reader

AMBIGUOUS_BELOW = 0.5


def asked_classes(reader: Reader, question: Question) -> list[int] | None:
    """The ids of the classes asked; None: all, also where `question.within` fits them all.

    Raises:
        EmptyIndexError: no class is enrolled.
        NoFittingClassError: none of them fits `question.within`.
    """
    if reader.n_classes() == 0:
        raise EmptyIndexError(f"index {reader.index_name!r} holds no class yet.")
    if question.within is None:
        return None
    labels = reader.labels()
    patterns = [unicodedata.normalize("NFC", each) for each in question.within]  # as labels are
    # A label fits itself, also where it holds what stands for something in a pattern.
    fitting = [label for label in labels if any(label == each or fnmatchcase(label, each) for each in patterns)]
    if not fitting:
        shown = ", ".join(map(repr, question.within))
        hint = did_you_mean(question.within[0], labels) or None
        raise NoFittingClassError(f"no class of index {reader.index_name!r} fits {shown}.", hint=hint)
    return None if len(fitting) == len(labels) else reader.class_ids(fitting)


def predictions(
    reader: Reader,
    neighbours: Neighbours,
    known: Calibration,
    vectors: Float32s,
    question: Question,
    within: list[int] | None,
    sizes: Sequence[int],
) -> list[Prediction]:
    """Answer embeddings; the predictions name no file.

    Args:
        reader: the view to answer in.
        neighbours: lookups in that index.
        known: the calibration of this generation.
        vectors: (n_query, dim) float32, rows of unit length.
        question: how to answer.
        within: what `asked_classes` gave.
        sizes: how many rows, one after the other, are of one request; with `question.together` they get one answer.
    """
    n_way = reader.n_classes() if within is None else len(within)
    n_scored = min(n_way, max(scores.N_SCORED, question.top))
    compared = vectors if known.metric is None else known.metric(vectors)
    if question.together:
        similarities, class_ids = _averaged(reader, neighbours, compared, sizes, n_scored, within, known.metric)
        vectors = _means(vectors, sizes)  # not of unit length: a cosine to one is the mean of the photos' cosines
    else:
        similarities, class_ids = neighbours.classes(reader, compared, n_scored, within, known.metric)
    familiarities = scores.familiarity(similarities).tolist()
    shares = scores.probabilities(similarities, n_way, known.scale)
    labels = reader.class_labels(class_ids[:, : question.top].ravel().tolist())
    nearest = neighbours.supports(reader, vectors, question.n_nearest, within)
    covering = _covering(reader, known, question.coverage, similarities, class_ids)
    found = []
    for row in range(len(vectors)):
        matches = tuple(
            Match(labels[int(class_ids[row, i])], min(1.0, float(similarities[row, i])), float(shares[row, i]))
            for i in range(min(question.top, n_scored))
        )
        best = matches[0]
        unknown = known.is_unknown(familiarities[row])
        message = known.explain(best.label, similarities[row], familiarities[row])
        if unknown:
            reason = "unknown"
        elif best.probability < AMBIGUOUS_BELOW:
            reason = "ambiguous"
            message += f"; {best.label} is less likely than all other classes together"
        else:
            reason = "match"
        answer = UNKNOWN if unknown else best.label
        found.append(Prediction("", answer, reason, message, matches, nearest[row], covering[row]))
    return found


def _averaged(
    reader: Reader,
    neighbours: Neighbours,
    compared: Float32s,
    sizes: Sequence[int],
    n_scored: int,
    within: Sequence[int] | None,
    metric: Metric | None,
) -> tuple[Float32s, Int64s]:
    """The nearest classes by the mean of each request's photos, class by class.

    Of a class with several prototypes each photo may be near another one, such as leaf and fruit; the mean of their
    embeddings would be near none.

    Args:
        reader: the view to answer in.
        neighbours: lookups in that index.
        compared: (n_query, dim) float32.
        sizes: how many rows, one after the other, are of one request.
        n_scored: how many classes.
        within: class ids to answer from; None: all.
        metric: what moved `compared`.

    Returns:
        As `Neighbours.classes` does, a row a request.
    """
    means = np.empty((len(sizes), n_scored), np.float32)
    found = np.empty((len(sizes), n_scored), np.int64)
    for row, photos in enumerate(np.split(compared, np.cumsum(sizes)[:-1])):
        similarities, class_ids = neighbours.classes(reader, photos, n_scored, within, metric)
        near = np.unique(class_ids)
        if len(near) > n_scored:  # what one photo is near to, the others are asked for too
            similarities, class_ids = neighbours.classes(reader, photos, len(near), near.tolist(), metric)
        mean = np.take_along_axis(similarities, np.argsort(class_ids, axis=1), axis=1).mean(axis=0)
        order = np.argsort(-mean, kind="stable")[:n_scored]
        means[row], found[row] = mean[order], near[order]
    return means, found


def _means(rows: Float32s, sizes: Sequence[int]) -> Float32s:
    """(len(sizes), dim) float32: the mean of each request's rows."""
    borders = np.cumsum(sizes)[:-1]
    return np.stack([part.mean(axis=0) for part in np.split(rows, borders)])


def _covering(
    reader: Reader, known: Calibration, coverage: float | None, similarities: Float32s, class_ids: Int64s
) -> list[tuple[str, ...] | None]:
    """Each query's labels that cannot be ruled out, nearest first; none, if it leads by less than their photos do."""
    if coverage is None:
        return [None] * len(similarities)
    different = np.unique(class_ids[class_ids >= 0])
    needed = dict(zip(different.tolist(), known.needed_margins(different, coverage).tolist(), strict=True))
    labels = reader.class_labels(different.tolist())
    found: list[tuple[str, ...] | None] = []
    for row, ids in zip(similarities.tolist(), class_ids.tolist(), strict=True):
        second = row[1] if len(row) > 1 else -np.inf
        rivals = [second] + [row[0]] * (len(row) - 1)
        leads = zip(ids, row, rivals, strict=True)
        found.append(tuple(labels[i] for i, own, rival in leads if i >= 0 and own - rival >= needed[i]))
    return found


def request_answers(photos: Sequence[Outcome], together: bool, answers: Iterator[Prediction]) -> list[Prediction]:
    """One request's predictions: those of photos that cannot be read, and the next of `answers` for the others."""
    found = []
    for photo in photos:
        if isinstance(photo, Refused):
            found.append(Prediction(photo.file, UNKNOWN, "bad_image", photo.message))
        elif not together:
            found.append(replace(next(answers), file=photo.file))
    readable = [photo.file for photo in photos if not isinstance(photo, Refused)]
    if together and readable:
        found.append(replace(next(answers), file=" + ".join(readable), files=tuple(readable)))
    return found
