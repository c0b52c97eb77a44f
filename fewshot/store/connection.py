"""An index file, opened: whose it is, which format it has, and its transactions."""

import contextlib
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import event

from fewshot.errors import (
    DiskFullError,
    FewshotError,
    IndexDamagedError,
    IndexLockedError,
    IndexMissingError,
    IndexUnwritableError,
    NotAnIndexError,
)
from fewshot.sealed import make_folder
from fewshot.store import migrating
from fewshot.store.addresses import doctor
from fewshot.store.reading import Place
from fewshot.store.schema import APPLICATION_ID, FORMAT_VERSION
from fewshot.store.transactions import BUSY_TIMEOUT_S, WRITES, Transactions
from fewshot.store.writing import Writer

FILE_NAME = "index.sqlite"
_WORK = re.compile(r"\..*\.copying(\..*)?", re.DOTALL)  # folders of copies under way, or left by killed ones


class Store(Transactions):
    """One index file, opened.

    Args:
        folder: the index's folder; holds `index.sqlite`.
        create: make a new, empty index where there is none.
        timeout_s: how long to wait for another process that is writing.

    Raises:
        IndexMissingError, NotAnIndexError, NewerFormatError, IndexDamagedError, IndexLockedError,
        IndexUnwritableError: see their messages.
    """

    def __init__(self, folder: Path, *, create: bool = False, timeout_s: float = BUSY_TIMEOUT_S) -> None:
        self.folder = self.place = folder
        self.path = folder / FILE_NAME
        self.name = folder.name or str(folder)
        self._timeout_s = timeout_s
        self._file: tuple[int, int] | None = None  # the device and number of the file that was opened
        if create:
            self._make_folder()
        elif not self.path.is_file():
            raise self._missing()
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self.path)), connect_args={"timeout": timeout_s}, pool_size=16
        )
        event.listen(self._engine, "do_connect", self._look_before_connecting)
        event.listen(self._engine, "connect", self._set_up_connection)
        event.listen(self._engine, "checkout", self._check_same_file)
        event.listen(self._engine, "begin", _begin)
        event.listen(self._engine, "handle_error", self._translate)
        try:
            with self._connect(write=False) as connection:
                self._check_format(connection, create)
        except BaseException:
            self._engine.dispose()
            raise

    # ---- transactions

    @contextlib.contextmanager
    def write(self, beside: Path | None = None) -> Iterator[Writer]:
        """One change: all of it is kept, or none; durable when the block ends.

        Args:
            beside: another index file, read by `Writer.take_beside`.

        Raises:
            IndexLockedError: another process has been writing for longer than the timeout.
            IndexMissingError: the file has been moved or removed since it was opened.
            NotAnIndexError: it has been replaced by a file that is no index of this format.
            DiskFullError: nothing of the change is kept.
        """
        with self._connect(write=True) as connection, self._attached(connection, beside), connection.begin():
            yield Writer(Place(self.name, self.folder), connection)

    @contextlib.contextmanager
    def _attached(self, sa_connection: sa.Connection, file: Path | None) -> Iterator[None]:
        """Another file's tables as `beside.TABLE`; SQLite attaches outside of a transaction only.

        The file's path is given in bytes: as text it would have to be UTF-8, which folders' names need not be.
        """
        if file is None:
            yield
            return
        connection = sa_connection.connection.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        try:
            connection.execute("ATTACH ? AS beside", (os.fsencode(file),)).close()
        except sqlite3.Error as error:
            raise self.translated(error) from error
        try:
            yield
        finally:
            connection.execute("DETACH beside").close()

    def copy_to(self, folder: Path, on_part: Callable[[], None] | None = None) -> None:
        """Make another index of the same content, whatever other processes write meanwhile.

        Args:
            folder: where; made if it does not exist, and must be empty.
            on_part: called about a hundred times on the way, for progress.

        Raises:
            NotAnIndexError: there is something in the folder.
            IndexUnwritableError, DiskFullError: it cannot be written.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise NotAnIndexError(f"{folder} is not empty.", hint="Name a new or an empty folder for the copy.")
        except OSError as error:
            raise IndexUnwritableError(
                f"the folder {folder} cannot be made: {error.strerror}.", hint="Choose another, or its permissions."
            ) from error
        with self.read() as reader:
            try:
                reader.copy_to(folder / FILE_NAME, on_part)
            except sqlite3.Error as error:
                raise self.translated(error) from error

    # ---- opening

    def _make_folder(self) -> None:
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotAnIndexError(f"{self.folder} is a file, not an index.", hint="Name a folder.")
            entries = entries_of(self.folder) if self.folder.is_dir() else set()
            if entries and FILE_NAME not in entries:
                raise NotAnIndexError(
                    f"{self.folder} is a folder with other things in it, not an index.",
                    hint="Name a new or an empty folder, so that nothing of yours is mixed with an index.",
                )
            make_folder(self.folder)
        except OSError as error:
            raise IndexUnwritableError(
                f"the index folder {self.folder} cannot be made: {error.strerror}.",
                hint="Choose another with --index, or change its permissions.",
            ) from error

    def _missing(self) -> FewshotError:
        if self.folder.is_file():
            return NotAnIndexError(f"{self.folder} is a file, not an index.", hint="An index is a folder.")
        if self.folder.is_dir() and entries_of(self.folder):
            return NotAnIndexError(
                f"{self.folder} is a folder without an {FILE_NAME}: not an index.", hint="Check --index."
            )
        return IndexMissingError(
            f"there is no index at {self.folder}.",
            hint="Enroll a class to make it (`fewshot enroll LABEL FOLDER`), or check --index.",
        )

    def _check_format(self, connection: sa.Connection, create: bool) -> None:
        with connection.begin():
            owner, version = _owner_and_version(connection)
            n_tables = int(connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one())
        if owner == 0 and n_tables == 0:  # a new file, or one whose maker was killed before its first commit
            if not create:
                raise self._missing_content()
            self._write_ahead(connection)
            with self.write() as writer:
                writer.create_tables()
            return
        if owner != APPLICATION_ID:
            raise NotAnIndexError(f"{self.path} is an SQLite file of another program, not an index.")
        if version > FORMAT_VERSION:
            raise migrating.newer_format(self.name, version)
        self._write_ahead(connection)
        if version < FORMAT_VERSION:
            with self._connect(write=True) as migrated, migrated.begin():
                # Another process may have been first.
                version = int(migrated.exec_driver_sql("PRAGMA user_version").scalar_one())
                migrating.migrate(migrated, version)

    def _write_ahead(self, sa_connection: sa.Connection) -> None:
        """Readers go on while one process writes. Set only once the file is known to be ours: it changes the file."""
        connection = sa_connection.connection.driver_connection  # outside of a transaction, where alone it may be set
        assert isinstance(connection, sqlite3.Connection)
        # SQLite does not wait by itself here for another process that is just making the same index.
        give_up_at = time.monotonic() + self._timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL").close()
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_at:
                    raise self.translated(error) from error
            except sqlite3.Error as error:
                raise self.translated(error) from error
            time.sleep(0.02)

    def _missing_content(self) -> FewshotError:
        return IndexMissingError(
            f"the index at {self.folder} was never finished: it holds nothing.",
            hint="Enroll a class to make it: `fewshot enroll LABEL FOLDER`.",
        )

    # ---- the file may be moved, removed or replaced while it is open: by hand, or by a repair

    def _connect(self, *, write: bool) -> sa.Connection:
        try:
            connection = self._engine.connect()
        except (sqlite3.Error, UnicodeDecodeError) as error:  # while the connection is set up, before `_translate`
            raise self.translated(error) from error
        file = connection.info["file"]
        if self._file not in (None, file):
            try:
                self._check_replaced(connection)
            except BaseException:
                connection.close()
                raise
        self._file = file
        return connection.execution_options(**{WRITES: write})

    def _look_before_connecting(self, *_facts: object) -> None:
        """SQLite would make the file anew, and what is written into it would be in no index of anybody's."""
        if self._file is not None:
            self._file_here()

    def _set_up_connection(self, connection: sqlite3.Connection, record: sa.pool.ConnectionPoolEntry) -> None:
        record.info["file"] = self._file_here()
        connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
        cursor = connection.cursor()
        try:
            for pragma in ("synchronous = FULL", "foreign_keys = ON"):
                cursor.execute(f"PRAGMA {pragma}")
        finally:
            cursor.close()

    def _check_same_file(self, _connection: object, record: sa.pool.ConnectionPoolEntry, _proxy: object) -> None:
        """A connection to a file that has been replaced would read what was, and write where nobody looks."""
        if record.info["file"] != self._file_here():
            raise sa.exc.DisconnectionError  # the pool closes it and makes another

    def _file_here(self) -> tuple[int, int]:
        """The device and number of the file that has the index's name now."""
        try:
            found = self.path.stat()
        except (FileNotFoundError, NotADirectoryError):
            raise IndexMissingError(
                f"the index at {self.folder} is gone: its {FILE_NAME} was moved or removed while it was open.",
                hint="Put it back, and ask again; what was answered as stored before is in it.",
            ) from None
        except OSError as error:
            raise IndexUnwritableError(
                f"the index at {self.folder} cannot be looked at: {error.strerror}.", hint="Check its permissions."
            ) from error
        return found.st_dev, found.st_ino

    def _check_replaced(self, connection: sa.Connection) -> None:
        """Whether what has taken the place of the file that was opened can be used as that was."""
        with connection.begin():
            found = _owner_and_version(connection)
        if found != (APPLICATION_ID, FORMAT_VERSION):
            raise NotAnIndexError(
                f"{self.path} was replaced while it was open, by a file that is no index of format {FORMAT_VERSION}.",
                hint="Put an index back, or start again: one of an older format is brought to this one when opened.",
            )

    def _translate(self, context: sa.engine.ExceptionContext) -> None:
        if isinstance(context.original_exception, sqlite3.IntegrityError):
            return  # our own mistake, not the file's: shown as what it is
        if isinstance(context.original_exception, (sqlite3.Error, UnicodeDecodeError)):
            raise self.translated(context.original_exception) from context.original_exception

    def translated(self, error: sqlite3.Error | UnicodeDecodeError) -> FewshotError:
        """The error that a user can act on; text that cannot be decoded (UnicodeDecodeError) is damage."""
        name = getattr(error, "sqlite_errorname", "") or ""
        text = str(error)
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return IndexLockedError(f"index {self.name!r} is locked: another process has been writing to it.")
        if name.startswith("SQLITE_FULL"):
            return DiskFullError(f"the disk that holds index {self.name!r} is full; the change was not kept.")
        if name.startswith("SQLITE_NOTADB"):
            return NotAnIndexError(f"{self.path} is not an index: it is not an SQLite file.", hint="Check --index.")
        if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM", "SQLITE_AUTH")):
            return IndexUnwritableError(
                f"index {self.name!r} at {self.folder} cannot be opened for use: {text}.",
                hint="An index is written beside even where it is only read. Check the permissions of the folder and "
                "of the files in it, or copy the folder to where you may write.",
            )
        if name.startswith("SQLITE_IOERR"):
            return IndexUnwritableError(
                f"reading or writing index {self.name!r} failed: {text}; the change was not kept.",
                hint="Check the disk. The index itself is as it was before.",
            )
        return IndexDamagedError(
            f"index {self.name!r} is damaged: {text}.",
            hint=f"{doctor(self.folder)} says what is sound; restore {FILE_NAME} from a copy.",
        )


def entries_of(folder: Path) -> set[str]:
    """The names of what is in a folder, but for copies that are being made there."""
    return {path.name for path in folder.iterdir() if not _WORK.fullmatch(path.name)}


def _owner_and_version(connection: sa.Connection) -> tuple[int, int]:
    """Which program's file it is, and of which format; 0 and 0 of a new one."""
    owner, version = (connection.exec_driver_sql(f"PRAGMA {name}") for name in ("application_id", "user_version"))
    return int(owner.scalar_one()), int(version.scalar_one())


def _begin(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock at once: a change never fails half-way because another came first.
    write = connection.get_execution_options().get(WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")
