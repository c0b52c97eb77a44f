"""What the enrolled photos tell about themselves: spread, confusable classes, suspicious photos, near-copies."""

import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from fewshot.gallery.neighbours import Neighbours
from fewshot.records import ClassInspection, ClassSummary, ClassView, Int64s, Support, Suspicious
from fewshot.store import Reader

FEW_SUPPORTS = 5
# Two photos whose difference hashes differ in at most so many of 128 bits are taken for one photo saved twice. Of
# photos saved again, halved or brightened 96 to 100 % are found so, and 2 of 3.8 million pairs of different photos
# (benchmarks/constants.py). The embedding would not do: saving at quality 50 moves it as far as another leaf does.
NEAR_COPY_BITS = 10
# How much nearer another class must be before a photo is called suspicious. In classes that a backbone can hardly
# tell apart a quarter of all photos lie a little nearer to the wrong side; naming those would hide the wrong labels.
SUSPICIOUS_MARGIN = 0.05
N_CONFUSABLE = 3
_BETWEEN_WORDS = re.compile(r"[\s_\-\u2010-\u2015]+")  # spaces, underscores, hyphens and dashes
N_NAMED = 3  # photos that a warning names before it counts the rest


def describe_class(
    reader: Reader, neighbours: Neighbours, label: str
) -> tuple[ClassSummary, list[Support], ClassInspection]:
    """A class's counts, its photos in order of enrolment, and what it looks like from inside.

    Raises:
        UnknownLabelError: there is no such class.
    """
    class_id = reader.wanted_class_id(label)
    photos = reader.supports_of(class_id)
    ids, vectors = reader.class_vectors(class_id)
    own = [photo.own_similarity for photo in photos if photo.own_similarity is not None]
    nearest = neighbours.other_classes(reader, vectors, class_id, 1)
    prototypes = reader.prototypes_of(class_id)
    confusable: dict[int, float] = {}
    for row in neighbours.other_classes(reader, prototypes, class_id, N_CONFUSABLE):
        for other, similarity in row:
            confusable[other] = max(similarity, confusable.get(other, -1.0))
    labels = reader.class_labels(confusable)
    ranked = sorted(confusable.items(), key=lambda item: -item[1])[:N_CONFUSABLE]
    found = ClassInspection(
        label=label,
        supports=len(photos),
        similarity=float(np.mean(own)) if own else None,
        spread=float(np.std(own)) if own else None,
        confusable=tuple((labels[other], similarity) for other, similarity in ranked),
        suspicious=tuple(_suspicious(reader, {photo.support_id: photo for photo in photos}, ids, nearest)),
    )
    return ClassSummary(label, len(photos), len(prototypes)), photos, found


def class_view(reader: Reader, neighbours: Neighbours, label: str, support_ids: Sequence[int]) -> ClassView:
    """Photos of one class, in the order given, with what a picture of them needs; without those removed meanwhile.

    Raises:
        UnknownLabelError: there is no such class.
    """
    class_id = reader.wanted_class_id(label)
    records = reader.supports(support_ids)
    ids: Int64s = np.array([i for i in support_ids if i in records], np.int64)
    vectors = reader.support_vectors(ids)
    nearest = neighbours.other_classes(reader, vectors, class_id, 1)
    labels = reader.class_labels(row[0][0] for row in nearest if row)
    return ClassView(
        label=label,
        supports=tuple(records[i] for i in ids.tolist()),
        vectors=vectors,
        prototypes=reader.prototypes_of(class_id),
        nearest_other=tuple((labels[row[0][0]], row[0][1]) if row else None for row in nearest),
    )


def is_suspicious(own_similarity: float | None, other_similarity: float) -> bool:
    """Whether a photo lies so much nearer to another class than to the rest of its own that its label is in doubt.

    >>> is_suspicious(0.4, 0.5), is_suspicious(0.4, 0.42), is_suspicious(None, 0.9)
    (True, False, False)
    """
    return own_similarity is not None and other_similarity > own_similarity + SUSPICIOUS_MARGIN


def doubts(reader: Reader, neighbours: Neighbours, support_ids: Iterable[int]) -> list[str]:
    """What a careful user would want to know of photos just enrolled, in sentences.

    New labels that are written almost as another, few photos in a class or several of each plant, photos that look more
    like another class, near-copies in any class that looks alike. The cost depends on the classes that were changed and
    on their neighbours, not on the size of the index; a new class has its label held against all others.
    """
    wanted = sorted(set(support_ids))
    new_records = reader.supports(wanted)
    sentences: list[str] = []
    new_labels = []
    for label in dict.fromkeys(record.label for record in new_records.values()):
        class_id = reader.wanted_class_id(label)
        ids, vectors = reader.class_vectors(class_id)
        n_subjects = reader.n_subjects(class_id)
        if len(ids) < FEW_SUPPORTS:
            sentences.append(
                f"class {label!r} has {_count(len(ids))}; wanted {FEW_SUPPORTS} to 20 for answers to trust."
            )
        elif n_subjects < len(ids):
            wanted_more = f"; wanted {FEW_SUPPORTS} to 20" if n_subjects < FEW_SUPPORTS else ""
            sentences.append(
                f"the {_count(len(ids))} of {label!r} look like several shots each of {n_subjects} plants (or places), "
                f"and count as so many{wanted_more}."
            )
        new = np.isin(ids, wanted)
        if new.all():
            new_labels.append(label)
        nearest = neighbours.other_classes(reader, vectors[new], class_id, N_CONFUSABLE)
        found = _suspicious(reader, new_records, ids[new], nearest)
        if found:
            named = [
                f"{photo.file} ({photo.looks_like} {photo.similarity:.2f}, own {photo.own_similarity:.2f})"
                for photo in found
            ]
            verb = "looks" if len(found) == 1 else "look"
            sentences.append(
                f"{_count(len(found))} of {label!r} {verb} more like another class: {_listed(named)}. Right label?"
            )
        around = {class_id, *(other for row in nearest for other, _ in row)}
        sentences += _near_copies(reader, label, set(ids[new].tolist()), sorted(around))
    return twin_labels(new_labels, reader.labels() if new_labels else ()) + sentences


def as_spoken(label: str) -> str:
    """A label as somebody says it: labels that are written differently and spoken alike are likely to mean one class.

    >>> as_spoken("Bean-Rust") == as_spoken("bean_rust ") == as_spoken("bean  rust"), as_spoken("beanrust")
    (True, 'beanrust')
    """
    return _BETWEEN_WORDS.sub(" ", unicodedata.normalize("NFKC", label).casefold()).strip()


def near_copies(hashes: NDArray[np.uint8], rows: Int64s) -> dict[int, int]:
    """Which photos are near-copies of one before them: each such row, and the row of the photo most like it.

    Args:
        hashes: (n, 16) uint8, see `images.difference_hash`.
        rows: which photos to look at; each is held against those before it, so that a pair counts once.
    """
    first: dict[int, int] = {}
    for row in rows.tolist():
        n_bits = np.bitwise_count(hashes[row] ^ hashes[:row]).sum(axis=1)
        if len(n_bits) and n_bits.min() <= NEAR_COPY_BITS:
            first[row] = int(n_bits.argmin())
    return first


def twin_labels(new: Sequence[str], labels: Iterable[str]) -> list[str]:
    """Of each new label that is spoken like another of all: which, and how to make the two one. A pair is told once.

    >>> len(twin_labels(["Bean-Rust"], ["Bean-Rust", "bean rust", "mildew"])), twin_labels(["mildew"], ["mildew"])
    (1, [])
    """
    alike: dict[str, list[str]] = {}
    for label in labels:
        alike.setdefault(as_spoken(label), []).append(label)
    sentences = []
    told: set[str] = set()
    for label in new:
        others = [other for other in alike.get(as_spoken(label), ()) if other != label and other not in told]
        if others:
            told.add(label)
            sentences.append(
                f"there is a class {others[0]!r} already; {label!r} is another one. To make them one: "
                f"`fewshot remove {shlex.quote(label)}`, and enroll its photos into {others[0]!r}."
            )
    return sentences


def _suspicious(
    reader: Reader, records: dict[int, Support], ids: Int64s, nearest: list[list[tuple[int, float]]]
) -> list[Suspicious]:
    """The photos whose nearest other class is clearly nearer than the rest of their own, worst first."""
    labels = reader.class_labels(row[0][0] for row in nearest if row)
    found = []
    for support_id, row in zip(ids.tolist(), nearest, strict=True):
        own = records[support_id].own_similarity
        if own is not None and row and is_suspicious(own, row[0][1]):
            other, similarity = row[0]
            found.append(Suspicious(support_id, records[support_id].file, own, labels[other], similarity))
    return sorted(found, key=lambda photo: photo.own_similarity - photo.similarity)


def _near_copies(reader: Reader, label: str, new: set[int], class_ids: list[int]) -> list[str]:
    ids, hashes = reader.difference_hashes(class_ids)
    first = near_copies(hashes, np.flatnonzero(np.isin(ids, list(new))))
    if not first:
        return []
    records = reader.supports(ids[[*first, *first.values()]].tolist())
    named = []
    for row, earlier in first.items():
        copy, original = records[int(ids[row])], records[int(ids[earlier])]
        where = "" if original.label == label else f" of {original.label!r}"
        named.append(f"{copy.file} of {original.file}{where}")
    n = len(first)
    what = "is a near-copy" if n == 1 else "are near-copies"
    return [f"{_count(n)} of {label!r} {what}: {_listed(named)}. Copies teach nothing; other leaves would."]


def _count(n: int) -> str:
    return f"{n} photo" if n == 1 else f"{n} photos"


def _listed(names: list[str]) -> str:
    rest = len(names) - N_NAMED
    return ", ".join(names[:N_NAMED]) + (f" and {rest} more" if rest > 0 else "")
