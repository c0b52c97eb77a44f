"""The system of record of an index: classes, supports, embeddings, history."""

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
import xxhash
from numpy.typing import NDArray
from sqlalchemy import event

from fewshot.errors import (
    DiskFullError,
    FewshotError,
    IndexDamagedError,
    IndexLockedError,
    IndexMissingError,
    IndexUnwritableError,
    LabelTakenError,
    NewerFormatError,
    NotAnIndexError,
    UnknownLabelError,
)
from fewshot.records import ClassSummary, EmbeddedPhoto, Float32s, Int64s, Support
from fewshot.schema import (
    APPLICATION_ID,
    FORMAT_VERSION,
    about,
    classes,
    embeddings,
    history,
    metadata,
    prototypes,
    removals,
    staged,
    supports,
    thumbnails,
)

FILE_NAME = "index.sqlite"
BUSY_TIMEOUT_S = 30.0
VECTOR_TABLES = {"support": (embeddings, embeddings.c.support_id), "prototype": (prototypes, prototypes.c.prototype_id)}


@dataclass(frozen=True, slots=True)
class About:
    """An index's own facts. The embedder's are None until the first class is enrolled.

    `generation` counts committed changes: equal generations of one index hold equal content.
    """

    created_at: str
    generation: int
    fingerprint: str | None
    precision: str | None
    dim: int | None
    source: dict[str, str] | None
    backbone: dict[str, Any] | None


class Store:
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
        self.folder = folder
        self.path = folder / FILE_NAME
        self.name = folder.name or str(folder)
        if create:
            self._make_folder()
        elif not self.path.is_file():
            raise self._missing()
        self._engine = sa.create_engine(
            sa.URL.create("sqlite", database=str(self.path)), connect_args={"timeout": timeout_s}, pool_size=16
        )
        event.listen(self._engine, "connect", _set_up_connection)
        event.listen(self._engine, "begin", _begin)
        event.listen(self._engine, "handle_error", self._translate)
        try:
            self._watch = self._connect()
            self._check_format(create)
        except BaseException:
            self._engine.dispose()
            raise

    # ---- transactions

    @contextlib.contextmanager
    def read(self) -> Iterator["Reader"]:
        """One unchanging view of the index, whatever other processes write meanwhile."""
        with self._connect() as connection, connection.begin():
            yield Reader(self, connection)

    @contextlib.contextmanager
    def write(self) -> Iterator["Writer"]:
        """One change: all of it is kept, or none; durable when the block ends.

        Raises:
            IndexLockedError: another process has been writing for longer than the timeout.
            DiskFullError: nothing of the change is kept.
        """
        with self._connect() as connection:
            connection = connection.execution_options(fewshot_write=True)
            with connection.begin():
                yield Writer(self, connection)

    def data_version(self) -> int:
        """Changes whenever another connection, of this process or another, has committed."""
        with self._watch.begin():
            return int(self._watch.exec_driver_sql("PRAGMA data_version").scalar_one())

    def close(self) -> None:
        """Close every connection."""
        self._watch.close()
        self._engine.dispose()

    # ---- opening

    def _make_folder(self) -> None:
        try:
            if self.folder.exists() and not self.folder.is_dir():
                raise NotAnIndexError(f"{self.folder} is a file, not an index.", hint="Name a folder.")
            entries = {path.name for path in self.folder.iterdir()} if self.folder.is_dir() else set()
            if entries and FILE_NAME not in entries:
                raise NotAnIndexError(
                    f"{self.folder} is a folder with other things in it, not an index.",
                    hint="Name a new or an empty folder, so that nothing of yours is mixed with an index.",
                )
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IndexUnwritableError(
                f"the index folder {self.folder} cannot be made: {error.strerror}.",
                hint="Choose another with --index, or change its permissions.",
            ) from error

    def _missing(self) -> FewshotError:
        if self.folder.is_file():
            return NotAnIndexError(f"{self.folder} is a file, not an index.", hint="An index is a folder.")
        if self.folder.is_dir() and any(self.folder.iterdir()):
            return NotAnIndexError(
                f"{self.folder} is a folder without an {FILE_NAME}: not an index.", hint="Check --index."
            )
        return IndexMissingError(
            f"there is no index at {self.folder}.",
            hint="Enroll a class to make it (`fewshot enroll LABEL FOLDER`), or check --index.",
        )

    def _check_format(self, create: bool) -> None:
        with self._watch.begin():
            owner = int(self._watch.exec_driver_sql("PRAGMA application_id").scalar_one())
            version = int(self._watch.exec_driver_sql("PRAGMA user_version").scalar_one())
            n_tables = int(self._watch.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one())
        if owner == 0 and n_tables == 0:  # a new file, or one whose maker was killed before its first commit
            if not create:
                raise self._missing_content()
            self._write_ahead()
            with self.write() as writer:
                writer.create_tables()
            return
        if owner != APPLICATION_ID:
            raise NotAnIndexError(f"{self.path} is an SQLite file of another program, not an index.")
        if version > FORMAT_VERSION:
            raise NewerFormatError(
                f"index {self.name!r} has format version {version}; this fewshot reads up to {FORMAT_VERSION}.",
                hint="Update fewshot: `pip install -U fewshot`.",
            )
        self._write_ahead()

    def _write_ahead(self) -> None:
        """Readers go on while one process writes. Set only once the file is known to be ours: it changes the file."""
        connection = self._watch.connection.driver_connection  # outside of a transaction, where alone it may be set
        assert isinstance(connection, sqlite3.Connection)
        try:
            connection.execute("PRAGMA journal_mode = WAL").close()
        except sqlite3.Error as error:
            raise self.translated(error) from error

    def _missing_content(self) -> FewshotError:
        return IndexMissingError(
            f"the index at {self.folder} was never finished: it holds nothing.",
            hint="Enroll a class to make it: `fewshot enroll LABEL FOLDER`.",
        )

    def _connect(self) -> sa.Connection:
        try:
            return self._engine.connect()
        except sqlite3.Error as error:  # raised while the connection is set up, before SQLAlchemy's own handling
            raise self.translated(error) from error

    def _translate(self, context: sa.engine.ExceptionContext) -> None:
        if isinstance(context.original_exception, sqlite3.IntegrityError):
            return  # our own mistake, not the file's: shown as what it is
        if isinstance(context.original_exception, sqlite3.Error):
            raise self.translated(context.original_exception) from context.original_exception

    def translated(self, error: sqlite3.Error) -> FewshotError:
        """The error that a user can act on."""
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
                hint="Check the permissions of the folder and of the files in it; the folder must be writable.",
            )
        if name.startswith("SQLITE_IOERR"):
            return IndexUnwritableError(
                f"reading or writing index {self.name!r} failed: {text}; the change was not kept.",
                hint="Check the disk. The index itself is as it was before.",
            )
        return IndexDamagedError(
            f"index {self.name!r} is damaged: {text}.",
            hint=f"`fewshot doctor --index {self.folder}` says what is sound; restore {FILE_NAME} from a copy.",
        )


class Reader:
    """Questions to one unchanging view of an index."""

    def __init__(self, store: Store, connection: sa.Connection) -> None:
        self._store = store
        self._connection = connection

    def about(self) -> About:
        """The index's own facts."""
        row = self._connection.execute(sa.select(about)).one_or_none()
        if row is None:
            raise IndexDamagedError(f"index {self._store.name!r} is damaged: its own facts are missing.")
        facts = dict(row._mapping)
        facts.pop("one")
        return About(**facts)

    def classes(self) -> list[ClassSummary]:
        """Every class with its counts, in label order."""
        n_supports = sa.select(supports.c.class_id, sa.func.count().label("n")).group_by(supports.c.class_id).subquery()
        n_prototypes = (
            sa.select(prototypes.c.class_id, sa.func.count().label("n")).group_by(prototypes.c.class_id).subquery()
        )
        query = (
            sa.select(classes.c.label, sa.func.coalesce(n_supports.c.n, 0), sa.func.coalesce(n_prototypes.c.n, 0))
            .outerjoin(n_supports, n_supports.c.class_id == classes.c.class_id)
            .outerjoin(n_prototypes, n_prototypes.c.class_id == classes.c.class_id)
            .order_by(classes.c.label)
        )
        return [ClassSummary(*row) for row in self._connection.execute(query)]

    def labels(self) -> list[str]:
        """Every label, in order."""
        return list(self._connection.execute(sa.select(classes.c.label).order_by(classes.c.label)).scalars())

    def n_classes(self) -> int:
        """How many classes are enrolled."""
        return int(self._connection.execute(sa.select(sa.func.count()).select_from(classes)).scalar_one())

    def n_supports(self) -> int:
        """How many photos are enrolled."""
        return int(self._connection.execute(sa.select(sa.func.count()).select_from(supports)).scalar_one())

    def class_id(self, label: str) -> int | None:
        """The class of a label, or None."""
        return self._connection.execute(sa.select(classes.c.class_id).where(classes.c.label == label)).scalar()

    def wanted_class_id(self, label: str) -> int:
        """The class of a label.

        Raises:
            UnknownLabelError: there is none; the nearest is suggested.
        """
        found = self.class_id(label)
        if found is None:
            raise UnknownLabelError(label, self._store.name, self.labels())
        return found

    def label_of_photo(self, sha256: str) -> str | None:
        """The label under which a photo with this content is enrolled, or None."""
        return self.labels_of_photos([sha256]).get(sha256)

    def labels_of_photos(self, hashes: Sequence[str]) -> dict[str, str]:
        """Content hash -> label, for those that are enrolled."""
        query = sa.select(supports.c.sha256, classes.c.label).join(classes)
        return dict(self._in_parts(query, supports.c.sha256, hashes))

    def class_labels(self, class_ids: Iterable[int]) -> dict[int, str]:
        """class_id -> label."""
        query = sa.select(classes.c.class_id, classes.c.label)
        return dict(self._in_parts(query, classes.c.class_id, sorted(set(class_ids))))

    def prototype_classes(self, prototype_ids: Iterable[int]) -> dict[int, int]:
        """prototype_id -> class_id."""
        query = sa.select(prototypes.c.prototype_id, prototypes.c.class_id)
        return dict(self._in_parts(query, prototypes.c.prototype_id, sorted(set(prototype_ids))))

    def supports(self, support_ids: Iterable[int]) -> dict[int, Support]:
        """support_id -> its record."""
        rows = self._in_parts(_SUPPORT_RECORD, supports.c.support_id, sorted(set(support_ids)))
        return {row[0]: Support(*row) for row in rows}

    def supports_of(self, class_id: int) -> list[Support]:
        """The photos of a class, in order of enrolment."""
        query = _SUPPORT_RECORD.where(supports.c.class_id == class_id).order_by(supports.c.support_id)
        return [Support(*row) for row in self._connection.execute(query)]

    def own_similarity_quantile(self, q: float) -> float | None:
        """The q-quantile of all supports' own similarities (the lower of two neighbours), None without any."""
        known = supports.c.own_similarity.is_not(None)
        n = int(self._connection.execute(sa.select(sa.func.count(supports.c.own_similarity))).scalar_one())
        if n == 0:
            return None
        query = sa.select(supports.c.own_similarity).where(known).order_by(supports.c.own_similarity)
        return float(self._connection.execute(query.limit(1).offset(int(q * (n - 1)))).scalar_one())

    def class_vectors(self, class_ids: Sequence[int]) -> tuple[Int64s, Int64s, Float32s]:
        """Support ids (n,), their class ids (n,) and their embeddings (n, dim), in order of enrolment."""
        query = (
            sa.select(supports.c.support_id, supports.c.class_id, embeddings.c.vector, embeddings.c.xxh3)
            .join(embeddings, embeddings.c.support_id == supports.c.support_id)
            .order_by(supports.c.support_id)
        )
        rows = list(self._in_parts(query, supports.c.class_id, list(class_ids)))
        ids = np.array([row[0] for row in rows], np.int64)
        return ids, np.array([row[1] for row in rows], np.int64), self._vectors([row[2:] for row in rows], ids)

    def difference_hashes(self, class_ids: Sequence[int]) -> tuple[Int64s, NDArray[np.uint8]]:
        """Support ids (n,) of these classes and their difference hashes (n, 16) uint8, in order of enrolment."""
        query = sa.select(supports.c.support_id, supports.c.dhash).where(supports.c.dhash.is_not(None))
        rows = sorted(self._in_parts(query, supports.c.class_id, list(class_ids)))
        bits = np.frombuffer(b"".join(row[1] for row in rows), np.uint8).reshape(len(rows), 16)
        return np.array([row[0] for row in rows], np.int64), bits

    def prototypes_of(self, class_id: int) -> Float32s:
        """The prototypes of a class: (n_prototypes, dim) float32, rows of unit length."""
        query = sa.select(prototypes.c.prototype_id, prototypes.c.vector, prototypes.c.xxh3)
        return self._read_vectors(query.where(prototypes.c.class_id == class_id))[1]

    def changed_vectors(self, kind: str, since: int) -> tuple[Int64s, Float32s]:
        """Ids and vectors of the supports or prototypes written after a generation.

        Args:
            kind: "support" or "prototype".
            since: a generation; -1 gives all.
        """
        table, key = VECTOR_TABLES[kind]
        query = sa.select(key, table.c.vector, table.c.xxh3).order_by(key)
        if since >= 0:
            owner = supports if kind == "support" else prototypes
            if kind == "support":
                query = query.join(supports, supports.c.support_id == embeddings.c.support_id)
            query = query.where(owner.c.generation > since)
        return self._read_vectors(query)

    def removed_ids(self, kind: str, since: int) -> Int64s:
        """Ids of the supports or prototypes removed after a generation."""
        query = sa.select(removals.c.removed_id).where(removals.c.kind == kind, removals.c.generation > since)
        return np.array(self._connection.execute(query).scalars().all(), np.int64)

    def n_changed(self, kind: str, since: int) -> int:
        """How many supports or prototypes were written after a generation."""
        table = supports if kind == "support" else prototypes
        query = sa.select(sa.func.count()).select_from(table).where(table.c.generation > since)
        return int(self._connection.execute(query).scalar_one())

    def thumbnail(self, support_id: int) -> bytes | None:
        """The kept photo of a support: a WebP file.

        Raises:
            IndexDamagedError: its bytes do not fit their checksum.
        """
        row = self._connection.execute(
            sa.select(thumbnails.c.webp, thumbnails.c.xxh3).where(thumbnails.c.support_id == support_id)
        ).one_or_none()
        if row is None:
            return None
        if _checksum(row.webp) != row.xxh3:
            raise IndexDamagedError(
                f"index {self._store.name!r} is damaged: the kept photo of support {support_id} does not fit its "
                f"checksum."
            )
        return bytes(row.webp)

    def unstaged(self, fingerprint: str) -> list[tuple[int, str, str]]:
        """(support_id, sha256, file) of the supports that `stage` has not yet got for this fingerprint."""
        done = sa.select(staged.c.support_id).where(staged.c.fingerprint == fingerprint)
        query = sa.select(supports.c.support_id, supports.c.sha256, supports.c.file)
        query = query.where(supports.c.support_id.not_in(done)).order_by(supports.c.support_id)
        return [(row[0], row[1], row[2]) for row in self._connection.execute(query)]

    def token(self, generation: int) -> str | None:
        """The random word that the change to this generation left, None if this file never saw that change.

        A file restored from a copy may count up to the same generation again with other content; the word tells.
        """
        query = sa.select(history.c.token).where(history.c.generation == generation)
        return self._connection.execute(query).scalar()

    def history(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest changes, newest first."""
        query = sa.select(history).order_by(history.c.event_id.desc()).limit(limit)
        return [dict(row._mapping) for row in self._connection.execute(query)]

    def problems(self) -> list[str]:
        """What is wrong with the file: SQLite's own check, foreign keys, checksums. Reads all of it."""
        rows = self._connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        found = [f"SQLite: {text}" for text in rows if text != "ok"]
        orphans = self._connection.exec_driver_sql("PRAGMA foreign_key_check")
        found += [f"row {row[1]} of {row[0]} refers to nothing in {row[2]}" for row in orphans]
        for key, column in (
            (embeddings.c.support_id, embeddings.c.vector),
            (thumbnails.c.support_id, thumbnails.c.webp),
            (prototypes.c.prototype_id, prototypes.c.vector),
        ):
            query = sa.select(key, column, key.table.c.xxh3).execution_options(yield_per=500)
            for row_id, blob, checksum in self._connection.execute(query):
                if _checksum(blob) != checksum:
                    owner = key.name.removesuffix("_id")
                    found.append(f"the {column.name} of {owner} {row_id} does not fit its checksum")
        without = (
            sa.select(sa.func.count())
            .select_from(supports)
            .where(supports.c.support_id.not_in(sa.select(embeddings.c.support_id)))
        )
        if n := self._connection.execute(without).scalar_one():
            found.append(f"{n} supports have no embedding")
        return found

    def _in_parts(self, query: Any, column: Any, values: Sequence[Any], size: int = 500) -> Iterator[Any]:
        for start in range(0, len(values), size):  # SQLite bounds the number of parameters of one statement
            for row in self._connection.execute(query.where(column.in_(values[start : start + size]))):
                yield tuple(row)

    def _read_vectors(self, query: Any) -> tuple[Int64s, Float32s]:
        ids: list[int] = []
        parts: list[Float32s] = []
        result = self._connection.execute(query.execution_options(yield_per=2000))
        for partition in result.partitions():
            part_ids = np.array([row[0] for row in partition], np.int64)
            parts.append(self._vectors([row[1:] for row in partition], part_ids))
            ids.extend(part_ids.tolist())
        if not parts:
            return np.zeros(0, np.int64), np.zeros((0, self.about().dim or 0), np.float32)
        return np.array(ids, np.int64), np.concatenate(parts)

    def _vectors(self, rows: Sequence[tuple[bytes, int]], ids: Int64s) -> Float32s:
        dim = self.about().dim or 0
        for (blob, checksum), row_id in zip(rows, ids.tolist(), strict=True):
            if _checksum(blob) != checksum or len(blob) != 4 * dim:
                raise IndexDamagedError(
                    f"index {self._store.name!r} is damaged: the vector of row {row_id} does not fit its checksum.",
                    hint=f"`fewshot doctor --index {self._store.folder}` lists what is damaged.",
                )
        return np.frombuffer(b"".join(row[0] for row in rows), "<f4").reshape(len(rows), dim).astype(np.float32)


class Writer(Reader):
    """Changes to an index, inside one transaction; every change counts the generation up once."""

    def __init__(self, store: Store, connection: sa.Connection) -> None:
        super().__init__(store, connection)
        self._generation: int | None = None

    def create_tables(self) -> None:
        """Lay out a new index, unless another process has just done so."""
        if self._connection.exec_driver_sql("SELECT count(*) FROM sqlite_master").scalar_one():
            return
        metadata.create_all(self._connection, checkfirst=False)
        self._connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
        self._connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT_VERSION}")
        self._connection.execute(about.insert().values(one=1, created_at=_now(), generation=0))

    def generation(self) -> int:
        """The generation that this transaction makes."""
        if self._generation is None:
            self._connection.execute(about.update().values(generation=about.c.generation + 1))
            self._generation = self.about().generation
        return self._generation

    def pin_embedder(
        self, *, fingerprint: str, precision: str, dim: int, source: dict[str, str], backbone: dict[str, Any]
    ) -> None:
        """Say which embedder made this index's embeddings."""
        self._connection.execute(
            about.update().values(
                fingerprint=fingerprint, precision=precision, dim=dim, source=source, backbone=backbone
            )
        )

    def add_class(self, label: str) -> int:
        """The class of a label, made if there is none."""
        found = self.class_id(label)
        if found is not None:
            return found
        result = self._connection.execute(classes.insert().values(label=label, created_at=_now()))
        return _new_id(result)

    def add_supports(self, class_id: int, photos: Sequence[EmbeddedPhoto]) -> list[int]:
        """Add photos to a class; their ids, in order."""
        ids = []
        for photo in photos:
            result = self._connection.execute(
                supports.insert().values(
                    class_id=class_id,
                    sha256=photo.sha256,
                    file=Path(photo.file).name,
                    width=photo.width,
                    height=photo.height,
                    dhash=photo.dhash,
                    added_at=_now(),
                    generation=self.generation(),
                )
            )
            support_id = _new_id(result)
            self._connection.execute(embeddings.insert().values(support_id=support_id, **_packed(photo.embedding)))
            if photo.thumbnail is not None:
                self._connection.execute(
                    thumbnails.insert().values(
                        support_id=support_id, webp=photo.thumbnail, xxh3=_checksum(photo.thumbnail)
                    )
                )
            ids.append(support_id)
        return ids

    def set_prototypes(self, class_id: int, vectors: Float32s) -> None:
        """Replace the prototypes of a class: (n_prototypes, dim) float32, rows of unit length."""
        self._drop("prototype", prototypes.c.prototype_id, prototypes.c.class_id == class_id)
        for vector in vectors:
            self._connection.execute(
                prototypes.insert().values(class_id=class_id, generation=self.generation(), **_packed(vector))
            )

    def set_own_similarities(self, support_ids: Int64s, values: Float32s | None) -> None:
        """Note for each support its cosine to the prototype of the others of its class; None where it is alone."""
        rows = [
            {"id": int(support_id), "value": None if values is None else float(values[i])}
            for i, support_id in enumerate(support_ids)
        ]
        if rows:
            update = supports.update().where(supports.c.support_id == sa.bindparam("id"))
            self._connection.execute(update.values(own_similarity=sa.bindparam("value")), rows)

    def remove_class(self, class_id: int) -> int:
        """Remove a class and its photos; how many photos."""
        self._drop("prototype", prototypes.c.prototype_id, prototypes.c.class_id == class_id)
        n = self._drop("support", supports.c.support_id, supports.c.class_id == class_id)
        self._connection.execute(classes.delete().where(classes.c.class_id == class_id))
        return n

    def rename_class(self, class_id: int, label: str) -> None:
        """Give a class another label.

        Raises:
            LabelTakenError: another class has it.
        """
        taken = self.class_id(label)
        if taken is not None and taken != class_id:
            raise LabelTakenError(
                f"index {self._store.name!r} already holds a class {label!r}.",
                hint="Choose another name; to merge two classes, remove one and enroll its photos into the other.",
            )
        self.generation()
        self._connection.execute(classes.update().where(classes.c.class_id == class_id).values(label=label))

    def stage(self, fingerprint: str, vectors: dict[int, Float32s]) -> None:
        """Keep new embeddings of supports aside until all are there."""
        for support_id, vector in vectors.items():
            row = {"support_id": support_id, "fingerprint": fingerprint, **_packed(vector)}
            self._connection.execute(staged.insert().prefix_with("OR REPLACE").values(**row))

    def adopt_staged(self, fingerprint: str) -> None:
        """Make the staged embeddings the index's own; the caller has seen that none is missing."""
        done = sa.select(staged.c.support_id, staged.c.vector, staged.c.xxh3).where(staged.c.fingerprint == fingerprint)
        self._connection.execute(embeddings.delete())
        self._connection.execute(embeddings.insert().from_select(["support_id", "vector", "xxh3"], done))
        self._connection.execute(staged.delete())
        self._connection.execute(supports.update().values(generation=self.generation()))

    def note(self, action: str, label: str | None, **detail: Any) -> None:
        """Write the line of history of this change: who did what, when. Every change has exactly one."""
        self._connection.execute(
            history.insert().values(
                at=_now(),
                who=_who(),
                action=action,
                label=label,
                detail=detail,
                generation=self.generation(),
                token=secrets.token_hex(8),
            )
        )

    def _drop(self, kind: str, key: sa.Column[Any], condition: sa.ColumnElement[bool]) -> int:
        ids = list(self._connection.execute(sa.select(key).where(condition)).scalars())
        if ids:
            self._connection.execute(
                removals.insert(),
                [{"kind": kind, "removed_id": i, "generation": self.generation()} for i in ids],
            )
            self._connection.execute(sa.delete(key.table).where(condition))
        return len(ids)


_SUPPORT_RECORD = sa.select(
    supports.c.support_id,
    classes.c.label,
    supports.c.file,
    supports.c.width,
    supports.c.height,
    supports.c.own_similarity,
    supports.c.added_at,
).join(classes)


def _set_up_connection(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where we say, not where the driver guesses
    cursor = connection.cursor()
    try:
        for pragma in ("synchronous = FULL", "foreign_keys = ON"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


def _begin(connection: sa.Connection) -> None:
    # IMMEDIATE takes the write lock at once: a change never fails half-way because another came first.
    write = connection.get_execution_options().get("fewshot_write", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _packed(vector: Float32s) -> dict[str, Any]:
    blob = np.ascontiguousarray(vector, "<f4").tobytes()
    return {"vector": blob, "xxh3": _checksum(blob)}


def _checksum(blob: bytes) -> int:
    """xxh3-64 as a signed integer, which is what SQL has."""
    value = int(xxhash.xxh3_64_intdigest(blob))
    return value - (1 << 64) if value >= 1 << 63 else value


def _new_id(result: "sa.CursorResult[Any]") -> int:
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _who() -> str:
    return os.environ.get("FEWSHOT_USER") or os.environ.get("USER") or f"uid {os.getuid()}"
