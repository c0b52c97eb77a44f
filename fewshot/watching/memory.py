"""What a watch remembers on disk: which photos are answered, and which answers are still to be handed over."""

import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import platformdirs

from fewshot.errors import FewshotError, WatchRunningError, WatchStateError
from fewshot.watching.answers import BAD_IMAGE, Answer, answer_from
from fewshot.watching.arrivals import Signature

FILE_NAME = "memory.sqlite"
APPLICATION_ID = 0x46455757  # "FEWW", where SQLite keeps whose file it is
VERSION = 1
_TABLES = """
CREATE TABLE about (folder BLOB NOT NULL, index_folder BLOB NOT NULL);
CREATE TABLE files (path BLOB PRIMARY KEY, size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL);
CREATE TABLE answers (answer_id INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, body TEXT NOT NULL);
CREATE TABLE outbox (
    sink TEXT NOT NULL, answer_id INTEGER NOT NULL REFERENCES answers, held TEXT, PRIMARY KEY (sink, answer_id)
);
CREATE TABLE positions (sink TEXT PRIMARY KEY, n_bytes INTEGER NOT NULL);
"""


@dataclass(frozen=True, slots=True)
class Finished:
    """A photo that is dealt with: its file, its answer and who gets that (None: a copy, answered before)."""

    path: Path
    signature: Signature
    answer: Answer | None = None
    sinks: tuple[str, ...] = ()


def default_folder(watched: Path, index_place: Path | str) -> Path:
    """Where the memory of a watch is by default: in the user's own folder for state, on a disk of this machine.

    Not in the watched folder, which may be a network share (SQLite's locks fail there) or one that may not be written.
    """
    digest = hashlib.sha256(os.fsencode(watched) + b"\0" + os.fsencode(index_place)).hexdigest()[:12]
    return platformdirs.user_state_path("fewshot", appauthor=False) / "watch" / f"{watched.name}-{digest}"


class Memory:
    """The memory of one watch: of one folder, asked of one index. Held by one process at a time.

    A photo's answer and the list of who is to get it are written in one transaction, before anybody gets it. From then
    on the photo is answered, whatever happens to this process.

    Args:
        folder: the memory's own folder; made if it is missing.
        watched: the folder watched.
        index_place: the index asked: its folder, or the address of its database.

    Raises:
        WatchRunningError: another process holds this memory.
        WatchStateError: it is another watch's, damaged, newer, or cannot be written.
    """

    def __init__(self, folder: Path, watched: Path, index_place: Path | str) -> None:
        self.path = folder / FILE_NAME
        self._lock = threading.RLock()  # the main thread and those that post share the connection
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WatchStateError(
                f"the memory folder {folder} cannot be made: {error.strerror}.", hint="Name another with --state."
            ) from error
        with self._translated():
            self._connection = sqlite3.connect(self.path, timeout=1.0, isolation_level=None, check_same_thread=False)
        try:
            with self._translated():
                self._set_up(os.fsencode(watched), os.fsencode(index_place))
        except BaseException:
            self._connection.close()
            raise

    def close(self) -> None:
        """Let another process have the memory."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> "Memory":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    # ---- photos

    def files(self) -> dict[Path, Signature]:
        """Every file that was dealt with, and its signature then."""
        with self._reading("SELECT path, size, mtime_ns, ctime_ns FROM files") as rows:
            return {Path(os.fsdecode(path)): (size, mtime, ctime) for path, size, mtime, ctime in rows}

    def answer(self, key: str) -> Answer | None:
        """The answer that has this key; None if there is none yet."""
        with self._reading("SELECT body FROM answers WHERE key = ?", key) as rows:
            return next((answer_from(json.loads(body)) for (body,) in rows), None)

    def finish(self, photos: Sequence[Finished]) -> None:
        """Remember that photos are dealt with, and to whom their answers are due: all of it, or nothing."""
        with self._writing() as connection:
            for photo in photos:
                values = (os.fsencode(photo.path), *photo.signature)
                connection.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", values)
                if photo.answer is not None:
                    # Memories of earlier versions hold photos that could not be read under their content's key.
                    connection.execute(
                        "UPDATE answers SET key = 'unread-' || answer_id || '-' || key "
                        "WHERE key = ? AND json_extract(body, '$.reason') = ?",
                        (photo.answer.key, BAD_IMAGE),
                    )
                    cursor = connection.execute(
                        "INSERT INTO answers (key, body) VALUES (?, ?)", (photo.answer.key, photo.answer.as_line())
                    )
                    due = [(sink, cursor.lastrowid) for sink in photo.sinks]
                    connection.executemany("INSERT INTO outbox (sink, answer_id) VALUES (?, ?)", due)

    # ---- answers to hand over

    def due(self, sink: str, limit: int = 1000) -> list[tuple[int, Answer]]:
        """The first answers that a sink has still to get, without those on hold: (id, answer) in order."""
        with self._reading(
            "SELECT answer_id, body FROM outbox JOIN answers USING (answer_id) WHERE sink = ? AND held IS NULL "
            "ORDER BY answer_id LIMIT ?",
            sink,
            limit,
        ) as rows:
            return [(answer_id, answer_from(json.loads(body))) for answer_id, body in rows]

    def handed_over(self, sink: str, answer_ids: Sequence[int], n_bytes: int | None = None) -> None:
        """The sink has these answers; where the sink is a file, it is `n_bytes` long now."""
        with self._writing() as connection:
            gone = [(sink, answer_id) for answer_id in answer_ids]
            connection.executemany("DELETE FROM outbox WHERE sink = ? AND answer_id = ?", gone)
            if n_bytes is not None:
                connection.execute("INSERT OR REPLACE INTO positions VALUES (?, ?)", (sink, n_bytes))

    def position(self, sink: str) -> int | None:
        """How long a sink's file was when answers were last handed over; None if they never were."""
        with self._reading("SELECT n_bytes FROM positions WHERE sink = ?", sink) as rows:
            return next((int(n_bytes) for (n_bytes,) in rows), None)

    def hold(self, sink: str, answer_id: int, why: str) -> None:
        """Keep an answer back that the sink will not take, so that it does not stand in the way of the next."""
        with self._writing() as connection:
            connection.execute("UPDATE outbox SET held = ? WHERE sink = ? AND answer_id = ?", (why, sink, answer_id))

    def release(self, sink: str) -> None:
        """Try again what is on hold."""
        with self._writing() as connection:
            connection.execute("UPDATE outbox SET held = NULL WHERE sink = ?", (sink,))

    def n_due(self) -> dict[str, int]:
        """How many answers each sink has still to get, those on hold included; only sinks that lack some."""
        with self._reading("SELECT sink, count(*) FROM outbox GROUP BY sink") as rows:
            return {str(sink): int(n) for sink, n in rows}

    # ---- the file

    def _set_up(self, watched: bytes, index_folder: bytes) -> None:
        connection = self._connection
        # Exclusive for as long as it is open: two watches with one memory would answer twice. A killed process holds
        # nothing, since the system lets its locks go.
        for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            connection.execute(f"PRAGMA {pragma}").close()
        connection.execute("BEGIN EXCLUSIVE")
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0:
            for statement in _TABLES.split(";\n"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")
            connection.execute("INSERT INTO about VALUES (?, ?)", (watched, index_folder))
        elif owner != APPLICATION_ID:
            raise WatchStateError(f"{self.path} is another program's file.", hint="Name another folder with --state.")
        elif version > VERSION:
            raise WatchStateError(
                f"{self.path} has version {version}; this fewshot reads up to {VERSION}.", hint="Update fewshot."
            )
        else:
            of = connection.execute("SELECT folder, index_folder FROM about").fetchone()
            if of != (watched, index_folder):
                shown = [os.fsdecode(each) for each in of]
                raise WatchStateError(
                    f"{self.path} is the memory of watching {shown[0]} with the index {shown[1]}.",
                    hint="Name another folder with --state, or move this one away to answer everything anew.",
                )
        connection.execute("COMMIT")

    @contextmanager
    def _reading(self, statement: str, *values: object) -> Iterator[sqlite3.Cursor]:
        with self._lock, self._translated():
            yield self._connection.execute(statement, values)

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._problem(error) from error

    def _problem(self, error: sqlite3.Error) -> FewshotError:
        name = getattr(error, "sqlite_errorname", "") or ""
        if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
            return WatchRunningError(f"another process watches with the memory {self.path}.")
        if name.startswith("SQLITE_FULL"):
            return WatchStateError(
                f"the disk that holds {self.path} is full; what was not written will be answered anew.",
                hint="Free some space and start again: what is answered stays answered.",
            )
        if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
            return WatchStateError(
                f"the memory {self.path} is damaged: {error}.",
                hint="Move it away: photos still in the folder will then be answered again.",
            )
        return WatchStateError(
            f"the memory {self.path} cannot be used: {error}.", hint="Check its permissions and its disk."
        )
