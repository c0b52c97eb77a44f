"""What is wrong with an index; and a damaged one -> what of it is proved sound, in its place."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fewshot.backbones import WeightsSource, on_this_machine
from fewshot.backup import moved_aside, place_of_work, whole_file, work_folder
from fewshot.embedder import EmbedderChoice, Outcome, open_embedder, same_embeddings
from fewshot.errors import (
    CacheDamagedError,
    DiskFullError,
    FewshotError,
    IndexDamagedError,
    IndexProblem,
    IndexUnwritableError,
    MixedEmbeddingsError,
    is_disk_full,
)
from fewshot.gallery.enrolling import learn_class
from fewshot.records import EmbeddedPhoto, NamedBytes, Refused
from fewshot.sealed import sync_folder, verify
from fewshot.search import VectorIndex
from fewshot.store import FILE_NAME, Reader, Store
from fewshot.store.log import damaged_log, fold_in
from fewshot.store.migrating import newer_format
from fewshot.store.salvage import Salvaged, SavedPhoto, fill, format_of, joined, salvage
from fewshot.store.schema import FORMAT_VERSION

# How a problem begins that is not of the index file itself.
_CACHE = "cache: "  # made anew at the next use
_MISSING = "missing: "  # a cache has seen changes that are not here any more


def found_problems(reader: Reader, search_files: Iterable[Path], calibration_file: Path) -> list[str]:
    """What is wrong with an index's own file and with its caches, in sentences; reads all of it."""
    found = reader.problems()
    for path in filter(Path.exists, search_files):
        try:
            _, facts = VectorIndex.open(path, {})
            if reader.token(int(facts["generation"])) != facts["token"]:
                found.append(
                    f"{_MISSING}{path.name} was made at change {facts['generation']}, which the index, at change "
                    f"{reader.about().generation}, does not hold: an older file was put in its place, or its log was "
                    "cut off."
                )
        except CacheDamagedError as error:
            found.append(f"{_CACHE}{error.message} It will be rebuilt at the next use.")
    try:
        if calibration_file.exists():
            verify(calibration_file)
    except CacheDamagedError as error:
        found.append(f"{_CACHE}{error.message} It will be made anew at the next use.")
    try:
        if reader.about().fingerprint is None and reader.n_supports():
            found.append("photos are enrolled, but the index does not say by which backbone")
    except IndexDamagedError as error:
        found.append(error.message)
    return found


@dataclass(frozen=True, slots=True)
class Repaired:
    """What a repair did.

    Attributes:
        n_photos: how many photos the index holds now.
        lost: photos that could not be saved: (support id, what is known of it, why).
        doubts: what was kept although a part of it is unsure, in sentences.
        damaged: the damaged file, moved aside.
    """

    n_photos: int
    lost: tuple[tuple[int, str, str], ...]
    doubts: tuple[str, ...]
    damaged: Path

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        lost = [{"support_id": number, "photo": what, "reason": why} for number, what, why in self.lost]
        return {"photos": self.n_photos, "lost": lost, "doubts": list(self.doubts), "damaged": str(self.damaged)}


def mend(
    folder: Path, problems: Sequence[str], *, on_notice: Callable[[str], None] | None = None
) -> Repaired | Literal["caches"] | None:
    """Do about the problems of an index what can be done.

    Args:
        folder: the index's folder; no other process has it open.
        problems: what `found_problems` said of it, or why it cannot be opened; at least one.
        on_notice: as of `repair`.

    Returns:
        "caches": they alone were damaged, and are taken away. None: changes are missing, which no repair brings back;
        the caches, which tell of it, are left. Otherwise what `repair` did.

    Raises:
        IndexProblem: as of `repair`, or the caches cannot be taken away.
    """
    if all(problem.startswith(_CACHE) for problem in problems):
        try:
            shutil.rmtree(folder / "cache")
        except OSError as error:
            raise _unwritable(folder, error) from error
        return "caches"
    if all(problem.startswith((_CACHE, _MISSING)) for problem in problems):
        return None
    return repair(folder, on_notice=on_notice)


def repair(folder: Path, *, on_notice: Callable[[str], None] | None = None) -> Repaired:
    """Save what is sound of a damaged index, and put it in its place.

    Embeddings and kept pictures are held against their checksums, everything else against its second copy in the file.
    A photo whose embedding is damaged is embedded anew from its kept picture. Prototypes and caches are made anew.

    Args:
        folder: the index's folder; no other process has it open.
        on_notice: told, in a sentence, of one-time work that takes seconds.

    Raises:
        IndexDamagedError: nothing can be saved; the index is left as it is.
        NewerFormatError: a later version has made it, and holds there what this one does not know.
        IndexProblem: the new file cannot be written.
    """
    folder = folder.absolute()
    try:
        return _repaired(folder, on_notice)
    except OSError as error:
        raise _unwritable(folder, error) from error


def _repaired(folder: Path, on_notice: Callable[[str], None] | None) -> Repaired:
    log_problem = damaged_log(folder / FILE_NAME)
    with work_folder(*place_of_work(folder)) as work:
        with closing(Store(work / "model", create=True)):
            pass
        try:
            found = _salvaged(folder, work, log_problem is not None)
        except IndexDamagedError as error:
            raise _hopeless(folder, error.message) from error
        if found.about is None:
            raise _hopeless(folder, "which embedder made its embeddings is damaged")
        if log_problem is not None:
            found.doubts.append(log_problem)
        photos = _with_vectors(found, found.about, on_notice)
        made = work / "made"
        with closing(Store(made, create=True)) as store, store.write() as writer:
            fill(writer, found, photos)
            for label in writer.labels():
                learn_class(writer, writer.wanted_class_id(label))
            writer.note("repair", None, n_supports=len(photos), lost=[number for number, _, _ in found.lost])
        _check(made, folder)
        whole = whole_file(made)
        shutil.rmtree(folder / "cache", ignore_errors=True)
        with moved_aside(folder) as damaged:
            whole.replace(folder / FILE_NAME)
        sync_folder(folder)
    return Repaired(len(photos), tuple(sorted(found.lost)), tuple(found.doubts), damaged)


def _salvaged(folder: Path, work: Path, is_log_damaged: bool) -> Salvaged:
    """What the index file and its log hold; of a damaged log also what stands behind the damage."""

    def copied(name: str, suffixes: Sequence[str]) -> Path:
        for suffix in suffixes:
            if (folder / f"{FILE_NAME}{suffix}").exists():
                shutil.copyfile(folder / f"{FILE_NAME}{suffix}", work / f"{name}{suffix}")
        return work / name

    model = work / "model" / FILE_NAME
    before = copied("damaged.sqlite", ("", "-wal"))  # SQLite reads a log up to where it does not fit
    version = format_of(before)
    if version is not None and version > FORMAT_VERSION:
        raise newer_format(folder.name, version)
    if not is_log_damaged:
        return salvage(before, model)
    behind = copied("behind.sqlite", ("", "-wal", "-shm"))
    fold_in(behind)
    readings, errors = [], []
    for file in (before, behind):
        try:
            readings.append(salvage(file, model))
        except IndexDamagedError as error:
            errors.append(error)
    if not readings:
        raise errors[-1]
    return joined(*readings) if len(readings) == 2 else readings[0]


def _with_vectors(
    found: Salvaged, facts: Mapping[str, Any], on_notice: Callable[[str], None] | None
) -> list[SavedPhoto]:
    """The photos that can go in; what becomes of the others is noted in `found`."""
    without = [photo for photo in found.photos if photo.vector is None or len(photo.vector) != facts["dim"]]
    pictures = [NamedBytes(str(photo.row["file"]), photo.webp or b"") for photo in without]
    anew: dict[int, SavedPhoto | None] = {}
    for photo, outcome in zip(without, _embedded(pictures, facts, on_notice) if without else [], strict=True):
        name = f"{photo.label}/{photo.row['file']}"
        if isinstance(outcome, EmbeddedPhoto):
            anew[photo.support_id] = replace(photo, vector=outcome.embedding)
            found.doubts.append(f"{name} (support {photo.support_id}) was embedded anew from its kept picture")
        else:
            why = outcome.message if isinstance(outcome, Refused) else "it was skipped"
            found.lost.append((photo.support_id, name, f"its embedding is damaged and cannot be made anew: {why}"))
            anew[photo.support_id] = None
    kept = [anew.get(photo.support_id, photo) for photo in found.photos]
    return [photo for photo in kept if photo is not None]


def _embedded(
    photos: Sequence[NamedBytes], facts: Mapping[str, Any], on_notice: Callable[[str], None] | None
) -> list[Outcome]:
    """Pictures embedded as the index's embedder does, going by the facts that the index holds of it."""
    try:
        choice = EmbedderChoice(precision=facts["precision"])
        embedder = open_embedder(choice, source=on_this_machine(WeightsSource(**facts["source"])), on_notice=on_notice)
    except FewshotError as error:
        return [Refused(photo.file, error.code, error.message) for photo in photos]
    if not same_embeddings(embedder.fingerprint, facts["fingerprint"]):
        why = f"the backbone here is {embedder.fingerprint}; the index has embeddings of {facts['fingerprint']}"
        return [Refused(photo.file, MixedEmbeddingsError.code, why) for photo in photos]
    return list(embedder.embed_photos(photos, n_photos=len(photos)))


def _check(made: Path, folder: Path) -> None:
    with closing(Store(made)) as store, store.read() as reader:
        problems = reader.problems()
    if problems:
        raise _hopeless(folder, f"what was saved of it contradicts itself ({problems[0]})")


def _unwritable(folder: Path, error: OSError) -> IndexProblem:
    if is_disk_full(error):
        return DiskFullError(
            f"the disk that holds {folder} is full; the index is as it was.", hint="Free some space, and repair again."
        )
    return IndexUnwritableError(
        f"the index at {folder} cannot be repaired: {error.strerror or error}.",
        hint="Check the permissions of its folder.",
    )


def _hopeless(folder: Path, why: str) -> IndexDamagedError:
    return IndexDamagedError(
        f"the index at {folder} cannot be repaired: {why}.",
        hint="It is left as it is. `fewshot restore FOLDER --replace` puts the latest backup in its place.",
    )
