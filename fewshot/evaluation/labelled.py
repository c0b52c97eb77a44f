"""Class folders -> labelled embeddings to be measured, and what about the photos would flatter the measure."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from fewshot.classifier.subjects import first_shots, subjects_of_classes
from fewshot.datasets import ClassFolder
from fewshot.embedder import Embedder
from fewshot.gallery.inspection import near_copies
from fewshot.records import EmbeddedPhoto, Float32s, Int64s, Refused


def read_labelled(
    folders: Sequence[ClassFolder],
    embedder: Embedder,
    *,
    on_photo: Callable[[], None],
    on_warning: Callable[[str], None],
) -> tuple[Float32s, Int64s]:
    """The photos of classes, embedded; each content once, as an index enrolls it.

    Args:
        folders: the classes.
        embedder: makes the embeddings.
        on_photo: called after each photo, for progress.
        on_warning: told, in sentences, of photos that are refused and of copies, which are left out; and of near-copies
            and further shots of one plant, which are not.

    Returns:
        (n, dim) float32, rows of unit length; and (n,) int64, the class of each by its place in `folders`.
    """
    photos = [(photo, i) for i, each in enumerate(folders) for photo in each.photos]
    of_content: dict[str, tuple[EmbeddedPhoto, int]] = {}
    n_copies = 0
    outcomes = embedder.embed_photos([photo for photo, _ in photos], n_photos=len(photos), keep=True)
    for outcome, (_, i) in zip(outcomes, photos, strict=True):
        on_photo()
        if isinstance(outcome, EmbeddedPhoto):
            n_copies += outcome.sha256 in of_content
            of_content.setdefault(outcome.sha256, (replace(outcome, thumbnail=None), i))  # pictures would fill memory
        elif isinstance(outcome, Refused):
            on_warning(f"{outcome.file}: {outcome.message}")
    if n_copies:
        on_warning(
            f"{n_copies} of {len(photos)} files hold the same bytes as one before, as no index enrolls; left out."
        )
    found = [photo for photo, _ in of_content.values()]
    class_index = np.array([i for _, i in of_content.values()], np.int64)
    embeddings = np.stack([photo.embedding for photo in found]) if found else np.zeros((0, embedder.dim), np.float32)
    flatter = "Episodes that enroll the one and ask the other flatter: leave one of them out."
    hashes = np.frombuffer(b"".join(photo.dhash or b"" for photo in found), np.uint8).reshape(len(found), 16)
    alike = near_copies(hashes, np.arange(len(found)))
    if alike:
        copy, original = next(iter(alike.items()))
        on_warning(
            f"{len(alike)} of {len(photos)} photos are near-copies of one before, such as {found[copy].file} of "
            f"{found[original].file}. {flatter}"
        )
    n_further = len(found) - len(first_shots(subjects_of_classes(embeddings, class_index)))
    if n_further:
        on_warning(
            f"{n_further} of {len(photos)} photos look like further shots of a plant, or place, that another photo of "
            f"their class shows. {flatter}"
        )
    return embeddings, class_index
