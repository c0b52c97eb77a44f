"""Embedded photos -> the supports of a class and what follows from them, inside one change of an index."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from fewshot.classifier.prototypes import class_prototypes, own_similarities
from fewshot.classifier.subjects import grouped
from fewshot.datasets import ClassFolder, legible
from fewshot.embedder import Embedder, Outcome, refused
from fewshot.errors import ImageError, LastSupportError, NoUsablePhotoError, OtherLabelError, StrictError
from fewshot.records import EmbeddedPhoto, EnrollReport, Refused, SkippedPhoto, Support
from fewshot.store import Writer

_MOST_NAMED = 20  # photos that a refusal of all names before it counts the rest


@dataclass(frozen=True, slots=True)
class _Sorted:
    """A batch of outcomes against an index: photos to add, how many are there already, and what cannot go in."""

    new: dict[str, EmbeddedPhoto]
    already: list[str]
    refused: list[Refused]


def outcomes_by_class(
    folders: Sequence[ClassFolder], outcomes: Iterator[Outcome], on_photo: Callable[[], None] | None
) -> Iterator[tuple[str, list[Outcome]]]:
    """Each label with the outcomes of its photos: the stream of all, cut at the borders between classes."""
    for folder in folders:
        batch = []
        for outcome in islice(outcomes, len(folder.photos)):
            batch.append(outcome)
            if on_photo is not None:
                on_photo()
        yield folder.label, batch
    for _ in outcomes:  # there are no more: what embeds them is told so, and its threads end now
        pass


def enroll_class(writer: Writer, embedder: Embedder, label: str, batch: Sequence[Outcome]) -> EnrollReport:
    """Add photos to a class, made if there is none."""
    found = _sorted(writer, label, batch)
    ids: list[int] = []
    if found.new:
        ids = _add(writer, embedder, label, found.new)
        learn_class(writer, writer.wanted_class_id(label))
    return EnrollReport(label, len(ids), len(found.already), tuple(found.refused), tuple(ids))


def replace_class(
    writer: Writer, embedder: Embedder, label: str, batch: Sequence[Outcome], *, strict: bool
) -> tuple[EnrollReport, int]:
    """Make a class hold the photos of `batch` and no others; also how many photos it lost.

    Raises:
        StrictError: `strict`, and a photo was refused.
        NoUsablePhotoError: every photo was refused: nothing is changed.
    """
    found = _sorted(writer, label, batch)
    if strict:
        check_strict([EnrollReport(label, len(found.new), len(found.already), tuple(found.refused))])
    if not found.new and not found.already:
        raise no_usable_photo(found.refused)
    class_id = writer.class_id(label)
    kept = set(writer.supports_with(found.already)) if found.already else set()
    there = [] if class_id is None else [support.support_id for support in writer.supports_of(class_id)]
    gone = [support_id for support_id in there if support_id not in kept]
    n_gone = writer.remove_supports(gone)
    ids = _add(writer, embedder, label, found.new) if found.new else []
    if ids or n_gone:
        learn_class(writer, writer.wanted_class_id(label))
    return EnrollReport(label, len(ids), len(found.already), tuple(found.refused), tuple(ids)), n_gone


def check_strict(reports: Sequence[EnrollReport]) -> None:
    """Refuse all where one photo was refused.

    Raises:
        StrictError: with the first 20 photos, each with its class and its reason.
    """
    photos = [(report.label, photo) for report in reports for photo in report.refused]
    if photos:
        n_photos = len(photos) + sum(report.enrolled + report.already_there for report in reports)
        named = [f"({i}) {label}: {photo.message}" for i, (label, photo) in enumerate(photos[:_MOST_NAMED], start=1)]
        more = f" And {len(photos) - _MOST_NAMED} more." if len(photos) > _MOST_NAMED else ""
        raise StrictError(
            f"nothing was enrolled: {len(photos)} of {n_photos} photos {'was' if len(photos) == 1 else 'were'} "
            f"refused. {' '.join(named)}{more}",
            hint="Mend these photos or take them out, or leave --strict out.",
        )


def remove_support(writer: Writer, support_id: int) -> Support:
    """Remove one photo from its class; its record as it was.

    Raises:
        UnknownSupportError: there is no such photo.
        LastSupportError: it is the only photo of its class.
    """
    support = writer.wanted_support(support_id)
    class_id = writer.wanted_class_id(support.label)
    if len(writer.supports_of(class_id)) == 1:
        raise LastSupportError(
            f"{support.file} is the only photo of {support.label!r}.",
            hint="Remove the class, or enroll other photos of it first.",
        )
    writer.remove_supports([support_id])
    learn_class(writer, class_id)
    return support


def learn_class(writer: Writer, class_id: int) -> None:
    """Compute what follows from a class's supports: its prototypes, and how well each photo fits the others."""
    ids, vectors = writer.class_vectors(class_id)
    groups, shown = grouped(vectors)
    writer.set_prototypes(class_id, class_prototypes(vectors, groups, int(groups.max()) + 1))
    writer.set_own_similarities(ids, own_similarities(vectors, groups, shown), shown)


def no_usable_photo(photos: Sequence[Refused]) -> NoUsablePhotoError:
    """The error that says why not one of some photos could be used."""
    why = "the photo cannot be used:" if len(photos) == 1 else f"none of the {len(photos)} photos can be used, first:"
    return NoUsablePhotoError(f"{why} {photos[0].message}", hint="Nothing was changed.")


def _sorted(writer: Writer, label: str, batch: Sequence[Outcome]) -> _Sorted:
    unusable = [outcome for outcome in batch if isinstance(outcome, Refused)]
    readable = [outcome for outcome in batch if not isinstance(outcome, Refused)]
    known = writer.labels_of_photos([outcome.sha256 for outcome in readable])
    new: dict[str, EmbeddedPhoto] = {}
    already: list[str] = []
    for outcome in readable:
        there = known.get(outcome.sha256)
        if there == label or outcome.sha256 in new:
            already.append(outcome.sha256)
        elif there is not None:
            other = OtherLabelError(f"{Path(outcome.file).name} is already enrolled as {there!r}.")
            unusable.append(refused(other, outcome.file))
        elif isinstance(outcome, SkippedPhoto):
            gone = ImageError(
                f"{Path(outcome.file).name} was just removed from the index by another process.",
                hint="Enroll again to put it back.",
            )
            unusable.append(refused(gone, outcome.file))
        else:
            new[outcome.sha256] = outcome
    return _Sorted(new, already, unusable)


def _add(writer: Writer, embedder: Embedder, label: str, photos: dict[str, EmbeddedPhoto]) -> list[int]:
    if writer.about().fingerprint is None:
        writer.pin_embedder(embedder.facts())
    named = [replace(photo, file=legible(photo.file)) for photo in photos.values()]
    return writer.add_supports(writer.add_class(label), named)
