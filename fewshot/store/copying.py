"""An index copied whole from a folder or a database to another: resumable, and compared by checksums when done."""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import xxhash

from fewshot.datasets import legible
from fewshot.errors import CopyError, IndexDamagedError, IndexUnwritableError, NotAnIndexError
from fewshot.sealed import sync_folder
from fewshot.store.addresses import is_server
from fewshot.store.connection import FILE_NAME, Store, entries_of
from fewshot.store.reading import Reader, checksum
from fewshot.store.schema import about, copying, metadata, staged
from fewshot.store.server import ServerStore
from fewshot.store.transactions import Transactions
from fewshot.store.writing import Writer

BATCH_ROWS = 500
STATE_FILE = "copying.json"
# Everything but `about`, which makes an index of the tables and is written last; what others refer to comes first.
TABLES = [table for table in metadata.sorted_tables if table is not about]


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy did.

    Attributes:
        n_rows: rows of all tables.
        n_before: how many of them an interrupted copy had brought already.
        checksums: of each table, the one that source and copy have in common.
    """

    n_rows: int
    n_before: int
    checksums: dict[str, str]


def copy_index(
    source: Transactions,
    target: Path | str,
    *,
    on_begin: Callable[[int], object] | None = None,
    on_row: Callable[[], None] | None = None,
) -> Copied:
    """Copy an index into a new folder or an empty database, with all that it is: ids, generation and history.

    Killed at any moment, the target holds no index; the same call goes on where it stopped. What the source is changed
    to meanwhile by others is not copied: the copy is the source as it was when the copy (or its continuation) began.

    Args:
        source: opened.
        target: a folder that does not exist or is empty, or a database without an index.
        on_begin: told how many steps (rows, each read, written and compared) there will be.
        on_row: called after each step.

    Raises:
        CopyError: there is an index already, or what arrived is not what was sent.
        NotAnIndexError: the folder holds other things.
    """
    step = on_row or (lambda: None)
    with source.read() as reader:
        state = _state(reader)
        counts = [_count(reader, table) for table in TABLES]
        if on_begin is not None:
            on_begin(3 * sum(counts))
        arriving = _ServerArrival(str(target)) if is_server(target) else _FolderArrival(Path(target))
        try:
            arriving.begin(legible(str(source.place)), state)
            n_before = sum(_copy_table(reader, arriving.store, table, step) for table in TABLES)
            checksums = _compared(reader, arriving.store, step)
            arriving.finish(reader)
        finally:
            arriving.store.close()
    arriving.reveal()
    return Copied(sum(counts), n_before, checksums)


def copy_to_folder(store: Transactions, folder: Path, on_part: Callable[[], None] | None = None) -> None:
    """Make another index of the same content in an empty folder: of a file as SQLite copies it, of a database by rows.

    Args:
        store: opened.
        folder: where; made if it does not exist.
        on_part: called about a hundred times on the way, for progress.

    Raises:
        NotAnIndexError, CopyError: there is something in the folder.
        IndexUnwritableError, DiskFullError: it cannot be written.
    """
    if isinstance(store, Store):
        store.copy_to(folder, on_part)
        return
    n_rows, n_done = 1, 0

    def begin(n: int) -> None:
        nonlocal n_rows
        n_rows = max(1, n)

    def step() -> None:
        nonlocal n_done
        n_done += 1
        if on_part is not None and 100 * n_done // n_rows > 100 * (n_done - 1) // n_rows:
            on_part()

    copy_index(store, folder, on_begin=begin, on_row=step)


# ---- where it arrives


class _ServerArrival:
    """Tables in a database that are no index before their `about` is written."""

    def __init__(self, where: str) -> None:
        self.store: Transactions = ServerStore(where, create=True, unfinished=True)

    def begin(self, source: str, state: dict[str, Any]) -> None:
        """Go on with an earlier copy of the same state, or begin anew."""
        with self.store.write() as writer:
            row = writer.connection.execute(sa.select(copying)).one_or_none()
            if row is None and not _is_empty(writer):
                raise _taken(self.store.place)
            if row is None or row.state != state:
                _clear(writer)
                writer.connection.execute(about.delete())
                writer.connection.execute(copying.delete())
                writer.connection.execute(copying.insert().values(one=1, source=source, state=state))

    def finish(self, reader: Reader) -> None:
        """Make it an index."""
        with self.store.write() as writer:
            _set_counters(reader, writer)
            writer.connection.execute(about.insert().values(**_about_row(reader)))
            writer.connection.execute(copying.delete())

    def reveal(self) -> None:
        """Nothing more: the transaction has shown it."""


class _FolderArrival:
    """A folder on the target's disk: beside it, and given its name when whole; or in it, where there is one already."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._beside = (folder if folder.is_dir() else folder.parent) / f".{folder.name}.copying"
        try:
            if (folder / FILE_NAME).exists():
                raise _taken(folder)
            if folder.exists() and (not folder.is_dir() or entries_of(folder)):
                raise NotAnIndexError(f"{folder} is not empty.", hint="Name a new or an empty folder for the copy.")
            self._beside.mkdir(parents=True, exist_ok=True)
            self._state_file = self._beside / STATE_FILE
            # Before the store, which would take the files for somebody else's things.
            self._noted = _noted(self._state_file)
            for path in (self._state_file, self._unnamed()):
                path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(folder, error) from error
        self.store: Transactions = Store(self._beside, create=True)

    def begin(self, _source: str, state: dict[str, Any]) -> None:
        """Go on with an earlier copy of the same state, or begin anew."""
        if self._noted != state:
            with self.store.write() as writer:
                _clear(writer)
        try:
            self._unnamed().write_text(json.dumps(state))
            self._unnamed().replace(self._state_file)
        except OSError as error:
            raise _unwritable(self._folder, error) from error

    def _unnamed(self) -> Path:
        """The state while it is written: a kill leaves no half of it under its name."""
        return self._beside / f"{STATE_FILE}.new"

    def finish(self, reader: Reader) -> None:
        """Give it the source's own facts."""
        with self.store.write() as writer:
            _set_counters(reader, writer)
            writer.connection.execute(about.update().values(**_about_row(reader)))

    def reveal(self) -> None:
        """Give the folder its name."""
        try:
            self._state_file.unlink()
            if self._beside.parent != self._folder:
                self._beside.replace(self._folder)
                return
            log = self._beside / f"{FILE_NAME}-wal"
            if log.exists() and log.stat().st_size:  # SQLite folds it in at the last closing, or fails without a word
                raise IndexUnwritableError(
                    f"the copy in {self._folder} could not be finished: writing its last changes failed.",
                    hint="Check the disk, and copy again.",
                )
            (self._beside / FILE_NAME).replace(self._folder / FILE_NAME)
            sync_folder(self._folder)
            shutil.rmtree(self._beside, ignore_errors=True)
        except OSError as error:
            raise _unwritable(self._folder, error) from error


def _noted(file: Path) -> Any:
    """The state of which a copy was begun; None where there is none, or what a crash has left of it."""
    try:
        return json.loads(file.read_text())
    except (FileNotFoundError, ValueError):
        return None


# ---- rows


def _state(reader: Reader) -> dict[str, Any]:
    """What tells whether an index has changed since a copy began."""
    known = reader.about()
    return {
        "created_at": known.created_at,
        "generation": known.generation,
        "token": reader.token(known.generation),
        staged.name: _count(reader, staged),
    }


def _count(reader: Reader, table: sa.Table) -> int:
    return int(reader.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def _is_empty(reader: Reader) -> bool:
    return not any(_count(reader, table) for table in TABLES)


def _clear(writer: Writer) -> None:
    for table in reversed(TABLES):
        writer.connection.execute(table.delete())


def _key(table: sa.Table) -> sa.Column[Any]:
    (key,) = table.primary_key
    return key


def _copy_table(reader: Reader, target: Transactions, table: sa.Table, step: Callable[[], None]) -> int:
    """Bring the rows behind those that are there already; how many those were."""
    key = _key(table)
    with target.read() as there:
        last = there.connection.execute(sa.select(sa.func.max(key))).scalar()
        n_before = _count(there, table)
    for _ in range(n_before):
        step()
    for batch in _batches(reader, table, last):
        _check_sound(reader, table, batch)
        with target.write() as writer:
            writer.connection.execute(table.insert(), batch)
        for _ in batch:
            step()
    return n_before


def _check_sound(reader: Reader, table: sa.Table, batch: Sequence[dict[str, Any]]) -> None:
    """Damage is not carried on: bytes that do not fit the checksum beside them end the copy."""
    for row in batch:
        blob = row.get("vector", row.get("webp"))
        if blob is not None and checksum(blob) != row["xxh3"]:
            raise IndexDamagedError(
                f"index {reader.index_name!r} is damaged: row {row[_key(table).name]} of {table.name!r} does not fit "
                "its checksum.",
                hint="`fewshot doctor` lists what is damaged; it is not copied.",
            )


def _batches(reader: Reader, table: sa.Table, after: int | None = None) -> Iterator[list[dict[str, Any]]]:
    """Rows in order of their key."""
    key = _key(table)
    while True:
        query = sa.select(table).order_by(key).limit(BATCH_ROWS)
        rows = reader.connection.execute(query if after is None else query.where(key > after)).all()
        if not rows:
            return
        yield [dict(row._mapping) for row in rows]
        after = int(rows[-1]._mapping[key])


def _compared(reader: Reader, target: Transactions, step: Callable[[], None]) -> dict[str, str]:
    """Checksums of all tables, read anew on both sides."""
    found = {}
    with target.read() as there:
        for table in TABLES:
            sent, arrived = (_checksum(_batches(side, table), step) for side in (reader, there))
            if sent != arrived:
                raise CopyError(
                    f"the rows of {table.name!r} that arrived at {target.place} are not those that were sent "
                    f"(checksums {sent} and {arrived}).",
                    hint="Something else has written there, or a disk or memory fails. Remove the copy and begin anew.",
                )
            found[table.name] = sent
    return found


def _checksum(batches: Iterator[Sequence[dict[str, Any]]], step: Callable[[], None]) -> str:
    digest = xxhash.xxh3_128()
    for batch in batches:
        for row in batch:
            for name in sorted(row):
                value = row[name]
                data = value if isinstance(value, bytes) else json.dumps(value, sort_keys=True).encode()
                digest.update(f"{name}:{len(data)}:".encode())
                digest.update(data)
            step()
    return digest.hexdigest()


def _about_row(reader: Reader) -> dict[str, Any]:
    return dict(reader.connection.execute(sa.select(about)).one()._mapping)


def _set_counters(reader: Reader, writer: Writer) -> None:
    """Go on counting ids where the source does: none is ever used twice, not even those of rows that are gone."""
    for table in TABLES:
        if table.foreign_keys and not table.kwargs.get("sqlite_autoincrement"):
            continue  # its key is another table's
        highest = reader.highest_id(table)
        if highest:
            writer.count_from(table, highest)


def _taken(place: object) -> CopyError:
    return CopyError(f"{place} holds an index already.", hint="Name a new folder or an empty database for the copy.")


def _unwritable(folder: Path, error: OSError) -> IndexUnwritableError:
    return IndexUnwritableError(
        f"the folder {folder} cannot be made: {error.strerror}.", hint="Choose another, or its permissions."
    )
