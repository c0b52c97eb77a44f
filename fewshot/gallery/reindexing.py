"""The photos of an index embedded anew by another embedder: kept in steps, taken on as one change."""

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from fewshot import images
from fewshot.decoding.cutting import Cutter
from fewshot.embedder import Embedder
from fewshot.errors import FewshotError, ImageError
from fewshot.gallery.enrolling import learn_class
from fewshot.records import EmbeddedPhoto, NamedBytes, Refused
from fewshot.store import Transactions, Writer

STAGE_CHUNK = 256  # photos that an interruption may cost
KEPT_INSTEAD = "%s: the photo that the index keeps is taken instead."  # with what is wrong with the original

log = logging.getLogger(__name__)


def embed_anew(
    store: Transactions,
    embedder: Embedder,
    originals: Iterable[Path],
    *,
    cutter: Cutter,
    on_photo: Callable[[], None] | None = None,
) -> tuple[int, int]:
    """Embed every photo anew, and pin the index to the embedder; see `Gallery.reindex`.

    Args:
        store: the index. It answers with its old embeddings until the last photo is done.
        embedder: the one to pin it to. What it embedded before an interruption is not embedded again.
        originals: files among which the original photos may be, found by content hash.
        cutter: decodes the photos.
        on_photo: called after each photo, for progress.

    Returns:
        How many photos there are, and how many of those embedded now came from originals.

    Raises:
        FewshotError: a photo cannot be embedded from what is kept of it.
        IndexDamagedError: a kept photo does not fit its checksum.
    """
    by_hash = _by_hash(originals)
    n_from_originals = 0
    while True:
        with store.write() as writer:
            todo = writer.unstaged(embedder.fingerprint)
            if not todo:
                n_supports = writer.n_supports()
                _adopt(writer, embedder)
                return n_supports, n_from_originals
        n_from_originals += _stage(store, embedder, todo, by_hash, cutter, on_photo)


def _stage(
    store: Transactions,
    embedder: Embedder,
    todo: Sequence[tuple[int, str, str]],
    by_hash: dict[str, Path],
    cutter: Cutter,
    on_photo: Callable[[], None] | None,
) -> int:
    """Embed photos for when all are done; how many of those that are still enrolled came from originals.

    A photo whose original is refused is embedded from what the index keeps of it, after the others.
    """
    from_originals: set[int] = set()

    def photos() -> Iterator[NamedBytes]:
        for support_id, sha256, file in todo:
            original = _original(by_hash.get(sha256), sha256)
            if original is not None:
                from_originals.add(support_id)
                yield original
                continue
            with store.read() as reader:
                yield NamedBytes(file, reader.thumbnail(support_id) or b"")

    outcomes = zip(todo, embedder.embed_photos(photos(), n_photos=len(todo), cutter=cutter), strict=True)
    refused = []
    n_from_originals = 0
    while chunk := list(islice(outcomes, STAGE_CHUNK)):
        vectors = {}
        for photo, outcome in chunk:
            support_id, _, file = photo
            message = outcome.message if isinstance(outcome, Refused) else "it was skipped"
            if isinstance(outcome, EmbeddedPhoto):
                vectors[support_id] = outcome.embedding
            elif support_id in from_originals:
                log.warning(KEPT_INSTEAD, message.rstrip("."))
                refused.append(photo)
                continue
            elif _is_enrolled(store, support_id):  # else another process removed it before its turn
                raise FewshotError(
                    f"photo {file} (support {support_id}) cannot be embedded again: {message}",
                    hint="Give the folder with the original photos: `fewshot reindex --photos FOLDER`.",
                )
            if on_photo is not None:
                on_photo()
        with store.write() as writer:
            present = writer.supports(vectors)
            writer.stage(embedder.fingerprint, {key: vectors[key] for key in present})
        n_from_originals += len(from_originals.intersection(present))
    if refused:
        _stage(store, embedder, refused, {}, cutter, on_photo)
    return n_from_originals


def _original(path: Path | None, sha256: str) -> NamedBytes | None:
    """The original photo, if its file is there and still holds what it held when it was found."""
    if path is None:
        return None
    try:
        data = images.read_bytes(path)
        if images.content_hash(data) == sha256:
            return NamedBytes(path.name, data)
        log.warning(KEPT_INSTEAD, f"{path.name} was changed meanwhile")
    except ImageError as error:
        log.warning(KEPT_INSTEAD, error.message.rstrip("."))
    return None


def _is_enrolled(store: Transactions, support_id: int) -> bool:
    with store.read() as reader:
        return support_id in reader.supports([support_id])


def _adopt(writer: Writer, embedder: Embedder) -> None:
    before = writer.about().fingerprint
    writer.pin_embedder(embedder.facts())
    writer.adopt_staged(embedder.fingerprint)
    for label in writer.labels():
        learn_class(writer, writer.wanted_class_id(label))
    writer.note("reindex", None, before=before, after=embedder.fingerprint)


def _by_hash(files: Iterable[Path]) -> dict[str, Path]:
    found = {}
    for file in files:
        try:
            found[images.content_hash(images.read_bytes(file))] = file
        except ImageError as error:
            log.warning("%s", error.message)
    return found
