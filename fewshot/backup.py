"""An index -> a sealed file of it, taken while it is in use; and back again, as one change or as a new index."""

import glob
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fewshot.errors import (
    BackupDamagedError,
    BackupError,
    BackupMissingError,
    CacheDamagedError,
    DiskFullError,
    IndexDamagedError,
    IndexExistsError,
    IndexMissingError,
    IndexProblem,
    IndexUnwritableError,
    NotAnIndexError,
    OtherIndexError,
    UsageError,
    is_disk_full,
)
from fewshot.sealed import make_folder, read_facts, sync_folder, verify, write_sealed, writer_of
from fewshot.store import FILE_NAME, Store, Transactions, copy_to_folder
from fewshot.store.connection import entries_of
from fewshot.store.reading import Reader
from fewshot.store.schema import TOKENS_FILE, TOKENS_LOCK

SUFFIX = ".backup"
_LOGS = ("-wal", "-shm")  # what SQLite keeps beside an index file
KEPT_FOLDER = "before-restore"  # in an index's folder: what it held before each restore


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup file and what it says of itself: the index's name, its last change, and how much it held then.

    `created_at` tells indexes of one name apart; backups of earlier versions have none.
    """

    path: Path
    index: str
    made_at: str
    generation: int
    token: str | None
    event_id: int
    event_at: str | None
    n_classes: int
    n_supports: int
    created_at: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON shape."""
        return {
            "file": str(self.path),
            "index": self.index,
            "made_at": self.made_at,
            "generation": self.generation,
            "event": self.event_id,
            "event_at": self.event_at,
            "classes": self.n_classes,
            "supports": self.n_supports,
        }


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did.

    `kept` is a backup of what the index held before, or the damaged file that was moved aside; None where there was
    nothing. `undone` are the lines of history behind the backup's last change, newest first.
    """

    backup: Backup
    folder: Path
    kept: Path | None
    undone: tuple[dict[str, Any], ...]


def back_up(store: Transactions, target: Path, on_part: Callable[[], None] | None = None) -> Backup:
    """Write a backup of an index, whatever other processes write meanwhile; verified before and after it is named.

    Args:
        store: the index.
        target: a file ending in `.backup`, replaced if it is a backup; or a folder of backups, made if there is none,
            which gets a new file named after index, time and generation.
        on_part: called about a hundred times on the way, for progress.

    Raises:
        IndexDamagedError: the index is not sound; older backups stay as they are.
        BackupError, DiskFullError: the backup cannot be written there.
    """
    made_at = datetime.now(UTC)
    try:
        is_file = target.suffix == SUFFIX and not target.is_dir()
        folder = target.parent if is_file else target
        make_folder(folder)
        if is_file and target.exists():
            _check_replaceable(target)
        with work_folder(folder, store.name) as work:
            copy_to_folder(store, work, on_part)
            facts = {"kind": "backup", "index": store.name, "made_at": made_at.isoformat(timespec="seconds")}
            facts |= _checked_facts(work, store.name)
            name = f"{store.name}-{made_at:%Y%m%dT%H%M%SZ}-g{facts['generation']:08d}{SUFFIX}"
            path = target if is_file else folder / name
            write_sealed(path, lambda temporary: whole_file(work).replace(temporary), facts, durable=True)
        return read_backup(path)
    except OSError as error:
        raise _unwritable(error, target) from error


def _check_replaceable(target: Path) -> None:
    """Nothing but a backup is ever written over, and what is damaged may be something else."""
    try:
        _read(target)
    except BackupDamagedError as error:
        raise BackupDamagedError(
            f"{target} is not written over, since it is no sound backup: {error.message}",
            hint="Move it away, or name another file.",
        ) from error


def read_backup(path: Path) -> Backup:
    """A backup, every byte of it held against its checksum.

    Raises:
        BackupMissingError: there is no such file.
        BackupDamagedError: it is cut short, changed, or no backup.
    """
    found = _read(path)
    try:
        verify(path)
    except CacheDamagedError as error:
        raise BackupDamagedError(error.message) from error
    return found


def backups_in(folder: Path) -> tuple[list[Backup], list[BackupDamagedError]]:
    """The backups in a folder, the one of the latest change last, and what is wrong with those that are damaged.

    Their facts are read, not all of their bytes.
    """
    found, damaged = [], []
    for path in sorted(filter(Path.is_file, folder.glob(f"*{SUFFIX}"))):
        try:
            found.append(_read(path))
        except BackupDamagedError as error:
            damaged.append(error)
    return sorted(found, key=lambda each: (each.event_id, each.made_at)), damaged


def chosen_backup(source: Path, at: str | None = None) -> Backup:
    """The backup to restore from.

    Args:
        source: a backup file, or a folder of backups of one index.
        at: the number of a change in the index's history, or a time in ISO 8601 (UTC where it names no zone): the
            latest backup that holds no later change. None: the latest of all.

    Raises:
        BackupMissingError: there is no backup, or none so early.
        UsageError: `at` is neither a number nor a time.
        BackupError: the folder holds backups of several indexes.
    """
    if source.is_dir():
        found, damaged = backups_in(source)
        names = {each.index for each in found}
        if len(names) > 1:
            raise BackupError(
                f"{source} holds backups of {len(names)} indexes: {', '.join(sorted(names))}.",
                hint="Name the one backup file to restore from.",
            )
        begun = sorted({each.created_at for each in found if each.created_at is not None})
        if len(begun) > 1:
            raise BackupError(
                f"{source} holds backups of {len(begun)} indexes of the name {found[0].index!r}, begun at "
                f"{', '.join(begun)}: whose changes are the latest cannot be told by their numbers.",
                hint="Name the one backup file to restore from, or give each index a folder of its own.",
            )
        if damaged and not found:
            raise damaged[0]
    else:
        found = [_read(source)]
    early = [each for each in found if at is None or _is_at_or_before(each, at)]
    if not found:
        raise BackupMissingError(f"{source} holds no backup (no file ending in {SUFFIX}).", hint="Check the folder.")
    if not early:
        first = found[0]
        raise BackupMissingError(
            f"no backup in {source} is as early as {at}; the earliest holds change {first.event_id} of "
            f"{first.event_at or 'an empty index'}.",
            hint="`fewshot restore FOLDER --list` shows the points that can be restored.",
        )
    return early[-1]


def restore(backup: Backup, folder: Path, *, replace: bool = False) -> Restored:
    """Make an index hold what a backup holds.

    Where there is no index, one is made. An index that is there is changed as by any other change: at once and whole,
    seen by processes that have it open, with its history kept and one line more. What it held is first kept as a
    backup in its folder. One that is too damaged to be opened is moved aside, not deleted.

    Raises:
        BackupDamagedError: a byte is not as it was written; nothing is changed.
        IndexExistsError: there is an index, and not `replace`.
        OtherIndexError: the index that is there never was what the backup holds.
        IndexProblem, BackupError: the index cannot be written.
    """
    backup = read_backup(backup.path)
    folder = folder.absolute()
    try:
        with work_folder(*place_of_work(folder)) as work:
            _unpack(backup, work)
            if not (folder / FILE_NAME).exists():
                return _restored_anew(backup, work, folder, None)
            if not replace:
                raise IndexExistsError(
                    f"there is an index at {folder}.",
                    hint="Restore into another folder with --index, or say --replace: what it holds now is kept.",
                )
            try:
                with closing(Store(folder)) as store:
                    return _restored_over(backup, work, store)
            except (IndexDamagedError, IndexMissingError, NotAnIndexError):  # missing: it was cut to nothing
                with moved_aside(folder) as kept:
                    return _restored_anew(backup, work, folder, kept)
    except OSError as error:
        raise _unwritable(error, folder) from error


def _restored_over(backup: Backup, work: Path, store: Store) -> Restored:
    with store.read() as reader:
        if not _was_at(reader, backup):
            raise OtherIndexError(
                f"the index at {store.folder} never was what {backup.path.name} holds (change {backup.event_id} of "
                f"index {backup.index!r}).",
                hint="Restore it into another folder with --index.",
            )
    with store.write(beside=work / FILE_NAME) as writer:
        # Inside the change, so that nothing is acknowledged between what is kept and what is replaced; by a view of
        # its own, which holds what was committed last.
        kept = back_up(store, store.folder / KEPT_FOLDER).path
        n_undone = writer.about().generation - backup.generation  # each change has one line
        undone = writer.history(n_undone) if n_undone else []
        writer.take_beside()
        writer.note("restore", None, **_detail(backup))
    return Restored(backup, store.folder, kept, tuple(undone))


def _restored_anew(backup: Backup, work: Path, folder: Path, kept: Path | None) -> Restored:
    with closing(Store(work)) as store, store.write() as writer:
        writer.note("restore", None, **_detail(backup))
    make_folder(folder)
    if kept is None:
        if not all(_is_left_of_an_index(folder / name) for name in entries_of(folder)):
            raise NotAnIndexError(f"{folder} is a folder with other things in it, not an index.", hint="Name another.")
        _move_logs(folder / FILE_NAME, _aside(folder))  # never behind another file
    shutil.rmtree(folder / "cache", ignore_errors=True)  # made of what stood here before
    whole_file(work).replace(folder / FILE_NAME)
    sync_folder(folder)
    sync_folder(folder.parent)
    return Restored(backup, folder, kept, ())


def _is_left_of_an_index(path: Path) -> bool:
    """Whether it is what stands beside an index file, which itself is gone."""
    if path.name == "cache":
        return any((path / name).is_file() for name in ("prototypes.faiss", "supports.faiss", "calibration"))
    ours = {KEPT_FOLDER, TOKENS_FILE, TOKENS_LOCK, *(f"{FILE_NAME}{suffix}" for suffix in _LOGS)}
    is_unfinished = writer_of(path, path.with_name(TOKENS_FILE)) is not None  # who wrote it was killed
    return path.name in ours or is_unfinished or path.name.startswith(f"{FILE_NAME}.damaged-")


def _aside(folder: Path) -> Path:
    """A new name for a damaged index file."""
    return folder / f"{FILE_NAME}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def _move_logs(file: Path, other: Path) -> None:
    """Put what SQLite keeps beside an index file beside another."""
    for suffix in _LOGS:
        path = Path(f"{file}{suffix}")
        if path.exists():
            path.replace(f"{other}{suffix}")


def whole_file(folder: Path) -> Path:
    """The file of a copy that has been closed, which holds all of it.

    Raises:
        IndexUnwritableError: its log could not be folded in, which SQLite does at the last closing, without a word.
    """
    log = folder / f"{FILE_NAME}-wal"
    if log.exists() and log.stat().st_size:
        raise IndexUnwritableError(
            f"a copy in {folder.parent} could not be finished: writing its last changes failed.",
            hint="Check the disk. Nothing was changed.",
        )
    return folder / FILE_NAME


@contextmanager
def moved_aside(folder: Path) -> Iterator[Path]:
    """A damaged file, with its log, kept under another name; the block puts another in its place.

    The file itself goes on standing under its own name too until then, so that a kill in between leaves an index. If
    the block fails before that, all is as it was.
    """
    kept = _aside(folder)
    os.link(folder / FILE_NAME, kept)
    try:
        _move_logs(folder / FILE_NAME, kept)
        yield kept
    except BaseException:
        if kept.samefile(folder / FILE_NAME):  # behind another file its log must never stand
            _move_logs(kept, folder / FILE_NAME)
            kept.unlink()
        raise


def _was_at(reader: Reader, backup: Backup) -> bool:
    if backup.generation == 0:  # every index was empty once
        return True
    return backup.token is not None and reader.token(backup.generation) == backup.token


def _detail(backup: Backup) -> dict[str, Any]:
    return {"to_event": backup.event_id, "to_generation": backup.generation, "backup": backup.path.name}


def _unpack(backup: Backup, work: Path) -> None:
    """The index file inside a backup, copied into a folder of its own and checked row by row."""
    target = work / FILE_NAME
    left = int(read_facts(backup.path)["payload_bytes"])
    with backup.path.open("rb") as source, target.open("wb") as file:
        while left:
            part = source.read(min(left, 1 << 20))
            file.write(part)
            left -= len(part)
        file.flush()
        os.fsync(file.fileno())
    try:
        _checked_facts(work, backup.index)
    except (IndexDamagedError, IndexMissingError, NotAnIndexError) as error:  # a sound file of what is no sound index
        raise BackupDamagedError(f"{backup.path}: {error.message}") from error


def _checked_facts(folder: Path, name: str) -> dict[str, Any]:
    """What a copy of an index says of itself, once all of it has been checked."""
    with closing(Store(folder)) as copy, copy.read() as reader:
        problems = reader.problems()
        if problems:
            raise IndexDamagedError(
                f"index {name!r} is damaged and was not backed up: {problems[0]}"
                + (f", and {len(problems) - 1} more." if len(problems) > 1 else "."),
                hint="`fewshot doctor --repair` saves what is sound; older backups are untouched.",
            )
        state, last = reader.about(), reader.last_change() or {"event_id": 0, "at": None, "token": None}
        return {
            "generation": state.generation,
            "token": last["token"],
            "event_id": last["event_id"],
            "event_at": last["at"],
            "n_classes": reader.n_classes(),
            "n_supports": reader.n_supports(),
            "created_at": state.created_at,
        }


def _read(path: Path) -> Backup:
    if not path.is_file():
        raise BackupMissingError(f"there is no backup {path}.", hint="Name a backup file or a folder of backups.")
    try:
        facts = read_facts(path)
    except CacheDamagedError as error:
        raise BackupDamagedError(error.message) from error
    if facts.get("kind") != "backup":
        raise BackupDamagedError(f"{path} is sealed, but no backup: a {facts.get('kind')}.", hint="Check the name.")
    names = [name for name in Backup.__dataclass_fields__ if name != "path"]
    return Backup(path, **{name: facts[name] for name in names if name in facts or name != "created_at"})


def _is_at_or_before(backup: Backup, at: str) -> bool:
    if re.fullmatch(r"\d+", at):
        return backup.event_id <= int(at)
    try:
        wanted = datetime.fromisoformat(at)
    except ValueError as error:
        raise UsageError(
            f"--at {at!r} is neither the number of a change nor a time.",
            hint="Such as 57, 2026-11-22 or 2026-11-22T14:30.",
        ) from error
    wanted = wanted if wanted.tzinfo else wanted.replace(tzinfo=UTC)
    return backup.event_at is None or datetime.fromisoformat(backup.event_at) <= wanted


def place_of_work(folder: Path) -> tuple[Path, str]:
    """Where `work_folder` makes what shall be moved into an index's folder, which may be a disk of its own."""
    return (folder if folder.is_dir() else folder.parent), folder.name


@contextmanager
def work_folder(parent: Path, name: str) -> Iterator[Path]:
    """A folder for one copy, on the disk where it shall stay; those of killed runs are taken away after a day."""
    for left in parent.glob(f".{glob.escape(name)}.copying.*"):
        if left.is_dir() and datetime.now(UTC).timestamp() - left.stat().st_mtime > 86_400:
            shutil.rmtree(left, ignore_errors=True)
    work = parent / f".{name}.copying.{os.getpid()}.{secrets.token_hex(4)}"
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _unwritable(error: OSError, target: Path) -> IndexProblem | BackupError:
    if is_disk_full(error):
        return DiskFullError(f"the disk that holds {target} is full; nothing was changed.", hint="Free some space.")
    return BackupError(f"{target} cannot be written: {error.strerror or error}.", hint="Check the path.")
