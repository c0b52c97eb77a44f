"""Questions to one unchanging view of an index."""

import contextlib
import sqlite3
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sa
import xxhash
from numpy.typing import NDArray

from fewshot.errors import IndexDamagedError, UnknownLabelError, UnknownSupportError
from fewshot.records import ClassSummary, Float32s, Int64s, Support
from fewshot.store import searching
from fewshot.store.addresses import doctor
from fewshot.store.drawing import drawn
from fewshot.store.schema import (
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
    tokens,
)

Answer = TypeVar("Answer")

PART = 500  # SQLite bounds the number of parameters of one statement
# Of each kind of vectors: the rows that they belong to, and where they stand themselves, both with their key.
ROWS = {"support": (supports, supports.c.support_id), "prototype": (prototypes, prototypes.c.prototype_id)}
VECTOR_TABLES = {**ROWS, "support": (embeddings, embeddings.c.support_id)}


@dataclass(frozen=True, slots=True)
class Place:
    """Which index a message speaks of."""

    name: str
    where: Path | str


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
    source: dict[str, Any] | None
    backbone: dict[str, Any] | None


# What a support shows: the id of the first photo of it.
_SUBJECT = sa.func.coalesce(supports.c.subject, supports.c.support_id)
_SUPPORT_RECORD = sa.select(
    supports.c.support_id,
    classes.c.label,
    supports.c.file,
    supports.c.width,
    supports.c.height,
    supports.c.own_similarity,
    supports.c.added_at,
).join(classes)


class Reader:
    """Questions to one unchanging view of an index."""

    # What is asked several times on the way to one answer is looked up once: over a network each time is a journey.
    _is_unchanging = True

    def __init__(self, place: Place, connection: sa.Connection) -> None:
        self._place = place
        self._connection = connection
        self._known: dict[Hashable, Any] = {}

    @property
    def connection(self) -> sa.Connection:
        """The transaction, for the other modules of the store."""
        return self._connection

    @property
    def index_name(self) -> str:
        """What messages call the index."""
        return self._place.name

    def about(self) -> About:
        """The index's own facts."""
        return self._once("about", self._read_about)

    def _read_about(self) -> About:
        with self._decoding("its own facts"):
            row = self._connection.execute(sa.select(about)).one_or_none()
        if row is None:
            raise self._damaged("its own facts are missing")
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

    def first_supports(self) -> dict[str, int]:
        """Label -> the photo that was enrolled first into the class."""
        query = sa.select(classes.c.label, sa.func.min(supports.c.support_id)).join(supports).group_by(classes.c.label)
        return {row[0]: row[1] for row in self._connection.execute(query)}

    def labels(self) -> list[str]:
        """Every label, in order."""
        return list(self._connection.execute(sa.select(classes.c.label).order_by(classes.c.label)).scalars())

    def n_classes(self) -> int:
        """How many classes are enrolled."""
        query = sa.select(sa.func.count()).select_from(classes)
        return self._once("n_classes", lambda: int(self._connection.execute(query).scalar_one()))

    def n_prototypes(self) -> int:
        """How many prototypes all classes have together."""
        return self.n_rows("prototype")

    def n_supports(self) -> int:
        """How many photos are enrolled."""
        return self.n_rows("support")

    def n_rows(self, kind: str, since: int = -1) -> int:
        """How many supports or prototypes were written after a generation; -1 gives all."""
        table, _ = ROWS[kind]
        query = sa.select(sa.func.count()).select_from(table)
        if since >= 0:
            query = query.where(table.c.generation > since)
        return int(self._connection.execute(query).scalar_one())

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
            raise UnknownLabelError(label, self._place.name, self.labels())
        return found

    def labels_of_photos(self, hashes: Sequence[str]) -> dict[str, str]:
        """Content hash -> label, for those that are enrolled."""
        query = sa.select(supports.c.sha256, classes.c.label).join(classes)
        return dict(self._in_parts(query, supports.c.sha256, hashes))

    def supports_with(self, hashes: Sequence[str]) -> list[int]:
        """The ids of the photos with these contents, of those that are enrolled."""
        query = sa.select(supports.c.support_id)
        return [row[0] for row in self._in_parts(query, supports.c.sha256, hashes)]

    def class_ids(self, labels: Sequence[str]) -> list[int]:
        """The ids of those labels that there are."""
        query = sa.select(classes.c.class_id)
        return [row[0] for row in self._in_parts(query, classes.c.label, labels)]

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

    def wanted_support(self, support_id: int) -> Support:
        """The record of a support.

        Raises:
            UnknownSupportError: there is none.
        """
        found = self.supports([support_id]).get(support_id)
        if found is None:
            raise UnknownSupportError(f"index {self._place.name!r} holds no photo {support_id}.")
        return found

    def supports_of(self, class_id: int) -> list[Support]:
        """The photos of a class, in order of enrolment."""
        query = _SUPPORT_RECORD.where(supports.c.class_id == class_id).order_by(supports.c.support_id)
        return [Support(*row) for row in self._connection.execute(query)]

    def class_sizes(self) -> dict[int, int]:
        """class_id -> how many photos are enrolled."""
        query = sa.select(supports.c.class_id, sa.func.count()).group_by(supports.c.class_id)
        return {row[0]: row[1] for row in self._connection.execute(query)}

    def n_subjects(self, class_id: int) -> int:
        """How many plants, or places, the photos of a class show: several shots of one count once."""
        query = sa.select(sa.func.count(sa.distinct(_SUBJECT))).where(supports.c.class_id == class_id)
        return int(self._connection.execute(query).scalar_one())

    def asked_supports(
        self, n_most: int, within: Sequence[int] | None = None
    ) -> tuple[Int64s, Int64s, Float32s, Int64s]:
        """Supports that can be asked as if they were not enrolled (those not alone in their class), evenly chosen.

        Several shots of one plant are chosen together or not at all.

        Args:
            n_most: about how many at most.
            within: class ids; None: all.

        Returns:
            Support ids (n,), class ids (n,), own similarities (n,) float32, and what each shows: (n,) int64, the same
            number for several shots of one plant.
        """
        known = supports.c.own_similarity.is_not(None)
        counted = sa.select(sa.func.count()).where(known)
        columns = (supports.c.support_id, supports.c.class_id, supports.c.own_similarity, _SUBJECT)
        n = sum(row[0] for row in self._of_classes(counted, within))
        chosen = sa.select(*columns).where(known, drawn(_SUBJECT, n, n_most))
        rows = sorted(self._of_classes(chosen, within))
        ids, class_ids, own, shown = zip(*rows, strict=True) if rows else ((), (), (), ())
        numbers = [np.array(each, np.int64) for each in (ids, class_ids, shown)]
        return numbers[0], numbers[1], np.array(own, np.float32), numbers[2]

    def support_ids(self, n_most: int) -> Int64s:
        """Ids of the supports, in order; evenly chosen, at most about `n_most`, where there are more."""
        is_drawn = drawn(supports.c.support_id, self.n_supports(), n_most)
        query = sa.select(supports.c.support_id).where(is_drawn).order_by(supports.c.support_id)
        return np.array(self._connection.execute(query).scalars().all(), np.int64)

    def support_vectors(self, support_ids: Int64s) -> Float32s:
        """The embeddings of supports: (n, dim) float32, in the order of the ids.

        Raises:
            IndexDamagedError: a vector is missing or does not fit its checksum.
        """
        query = sa.select(embeddings.c.support_id, embeddings.c.vector, embeddings.c.xxh3)
        rows = {row[0]: row[1:] for row in self._in_parts(query, embeddings.c.support_id, support_ids.tolist())}
        missing = [i for i in support_ids.tolist() if i not in rows]
        if missing:
            raise self._damaged(f"support {missing[0]} has no embedding")
        return self._vectors([rows[i] for i in support_ids.tolist()], support_ids)

    def photo_hashes(self, class_id: int) -> dict[int, str]:
        """support_id -> content hash of the photos of a class, in order of enrolment."""
        query = sa.select(supports.c.support_id, supports.c.sha256).where(supports.c.class_id == class_id)
        rows = self._connection.execute(query.order_by(supports.c.support_id))
        return {row[0]: row[1] for row in rows}

    def class_vectors(self, class_id: int) -> tuple[Int64s, Float32s]:
        """The support ids of a class (n,) and their embeddings (n, dim), in order of enrolment."""
        query = sa.select(embeddings.c.support_id, embeddings.c.vector, embeddings.c.xxh3).join(supports)
        return self._read_vectors(query.where(supports.c.class_id == class_id).order_by(embeddings.c.support_id))

    def difference_hashes(self, class_ids: Sequence[int]) -> tuple[Int64s, NDArray[np.uint8]]:
        """Support ids (n,) of these classes and their difference hashes (n, 16) uint8, in order of enrolment."""
        query = sa.select(supports.c.support_id, supports.c.dhash).where(supports.c.dhash.is_not(None))
        rows = sorted(self._in_parts(query, supports.c.class_id, list(class_ids)))
        bits = np.frombuffer(b"".join(row[1] for row in rows), np.uint8).reshape(len(rows), 16)
        return np.array([row[0] for row in rows], np.int64), bits

    def ids_of(self, kind: str, class_ids: Sequence[int]) -> Int64s:
        """Ids of the supports or prototypes of these classes."""
        table, key = ROWS[kind]
        rows = self._in_parts(sa.select(key), table.c.class_id, list(class_ids))
        return np.array([row[0] for row in rows], np.int64)

    def prototypes_of(self, class_id: int) -> Float32s:
        """The prototypes of a class: (n_prototypes, dim) float32, rows of unit length."""
        query = sa.select(prototypes.c.prototype_id, prototypes.c.vector, prototypes.c.xxh3)
        query = query.where(prototypes.c.class_id == class_id).order_by(prototypes.c.prototype_id)
        return self._read_vectors(query)[1]

    def changed_vectors(self, kind: str, since: int) -> tuple[Int64s, Float32s]:
        """Ids and vectors of the supports or prototypes written after a generation.

        Args:
            kind: "support" or "prototype".
            since: a generation; -1 gives all.
        """
        query, key = _vectors_of(kind)
        if since >= 0:
            owners, owner = ROWS[kind]
            query = query.where(key.in_(sa.select(owner).where(owners.c.generation > since)))
        return self._read_vectors(query)

    def owners(self, kind: str) -> tuple[Int64s, Int64s]:
        """The ids of all supports or prototypes, ascending, and the class of each."""
        table, key = ROWS[kind]
        rows = self._connection.execute(sa.select(key, table.c.class_id).order_by(key))
        both = np.fromiter((value for row in rows for value in row), np.int64).reshape(-1, 2)
        return both[:, 0].copy(), both[:, 1].copy()

    def vector_parts(self, kind: str, n_most: int | None = None) -> Iterator[tuple[Int64s, Float32s]]:
        """Ids and vectors of all supports or prototypes, a few thousand at a time: they need not fit in memory.

        Args:
            kind: "support" or "prototype".
            n_most: only about so many of them, evenly chosen.
        """
        query, key = _vectors_of(kind)
        if n_most is not None:
            query = query.where(drawn(key, self.n_rows(kind), n_most))
        yield from self._parts_of_vectors(query)

    def removed_ids(self, kind: str, since: int) -> Int64s:
        """Ids of the supports or prototypes removed after a generation."""
        query = sa.select(removals.c.removed_id).where(removals.c.kind == kind, removals.c.generation > since)
        return np.array(self._connection.execute(query).scalars().all(), np.int64)

    def may_hold_more_supports_than(self, n: int) -> bool:
        """Whether so many photos may be enrolled, told at once: from the ids given so far, of which some are gone."""
        highest = self._connection.execute(sa.select(sa.func.max(supports.c.support_id))).scalar()
        return highest is not None and int(highest) > n

    def nearest_supports(
        self, vectors: Float32s, k: int, within: Sequence[int] | None
    ) -> tuple[Float32s, Int64s] | None:
        """Each vector's nearest supports as the database finds them; None where the record is a file.

        Args:
            vectors: (n_vectors, dim) float32, rows of unit length.
            k: how many.
            within: class ids to answer from; None: all.

        Returns:
            Cosines (n_vectors, k) float32, highest first, and support ids (n_vectors, k) int64; where there are fewer,
            -inf and -1.
        """
        return None if self._is_file else searching.nearest(self._connection, vectors, k, within)

    def has_search_index(self) -> bool:
        """Whether a database searches its supports by HNSW; a file never does."""
        return not self._is_file and searching.built_dim(self._connection) is not None

    def kept_tokens(self) -> list[Any]:
        """What a server keeps of the tokens of its index, oldest first: the facts of each, if nobody meddled."""
        return list(self._connection.execute(sa.select(tokens.c.facts).order_by(tokens.c.place)).scalars())

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
        if checksum(row.webp) != row.xxh3:
            raise self._damaged(f"the kept photo of support {support_id} does not fit its checksum")
        return bytes(row.webp)

    def copy_to(self, path: Path, on_part: Callable[[], None] | None = None) -> None:
        """Write this view of the index as a file of its own.

        Args:
            path: where; nothing stands there yet.
            on_part: called about a hundred times on the way, for progress.

        Raises:
            OSError, sqlite3.Error: it cannot be written.
        """
        source = self._connection.connection.driver_connection
        assert isinstance(source, sqlite3.Connection)
        n_pages = int(self._connection.exec_driver_sql("PRAGMA page_count").scalar_one())
        progress = None if on_part is None else lambda *_: on_part()
        with contextlib.closing(sqlite3.connect(path)) as target:
            # This connection is inside its view, which other writers do not move: the copy never starts again.
            source.backup(target, pages=max(1, -(-n_pages // 100)), progress=progress)

    def last_change(self) -> dict[str, Any] | None:
        """The latest line of history, None before the first change."""
        return next(iter(self.history(1)), None)

    def highest_id(self, table: sa.Table) -> int:
        """The highest key that a table ever gave, to a row that may be gone; 0 if none."""
        (key,) = table.primary_key
        there = int(self._connection.execute(sa.select(sa.func.coalesce(sa.func.max(key), 0))).scalar_one())
        if self._is_file:
            if not table.kwargs.get("sqlite_autoincrement"):
                return there
            query = sa.text("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = :name")
            return max(there, int(self._connection.execute(query, {"name": table.name}).scalar_one()))
        query = sa.text("SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence(:table, :key)::regclass), 0)")
        given = self._connection.execute(query, {"table": table.name, "key": key.name}).scalar_one()
        return max(there, int(given))

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
        return self._once(("token", generation), lambda: self._connection.execute(query).scalar())

    def content(self) -> tuple[int, str | None]:
        """Generation and token: what is derived from one view holds for every view in which these are the same."""
        generation = self.about().generation
        return generation, self.token(generation)

    def history(self, limit: int = 100) -> list[dict[str, Any]]:
        """The latest changes, newest first."""
        query = sa.select(history).order_by(history.c.event_id.desc()).limit(limit)
        with self._decoding("its history"):
            return [dict(row._mapping) for row in self._connection.execute(query)]

    @contextlib.contextmanager
    def _decoding(self, what: str) -> Iterator[None]:
        """JSON is decoded here: where it cannot be, the file is damaged."""
        try:
            yield
        except (ValueError, TypeError) as error:
            raise self._damaged(f"{what} cannot be read ({error})") from error

    def _damaged(self, what: str) -> IndexDamagedError:
        return IndexDamagedError(
            f"index {self._place.name!r} is damaged: {what}.",
            hint=f"{doctor(self._place.where)} lists what is damaged.",
        )

    def problems(self) -> list[str]:
        """What is wrong with the record: SQLite's own check, foreign keys, checksums. Reads all of it."""
        found = self._file_problems() if self._is_file else self._server_problems()
        for key, column in (
            (embeddings.c.support_id, embeddings.c.vector),
            (thumbnails.c.support_id, thumbnails.c.webp),
            (prototypes.c.prototype_id, prototypes.c.vector),
            (staged.c.support_id, staged.c.vector),
        ):
            query = sa.select(key, column, key.table.c.xxh3).execution_options(yield_per=500)
            owner = key.name.removesuffix("_id")
            with self._connection.execute(query) as rows:
                found += [
                    f"the {column.name} of {owner} {row_id} does not fit its checksum"
                    for row_id, blob, noted in rows
                    if checksum(blob) != noted
                ]
        without = (
            sa.select(sa.func.count())
            .select_from(supports)
            .where(supports.c.support_id.not_in(sa.select(embeddings.c.support_id)))
        )
        if n := self._connection.execute(without).scalar_one():
            found.append(f"{n} supports have no embedding")
        return found

    @property
    def _is_file(self) -> bool:
        return self._connection.dialect.name == "sqlite"

    def _file_problems(self) -> list[str]:
        rows = self._connection.exec_driver_sql("PRAGMA integrity_check").scalars().all()
        found = [f"SQLite: {text}" for text in rows if text != "ok"]
        orphans = self._connection.exec_driver_sql("PRAGMA foreign_key_check")
        return found + [f"row {row[1]} of {row[0]} refers to nothing in {row[2]}" for row in orphans]

    def _server_problems(self) -> list[str]:
        """A server sees to foreign keys itself, but not across the servers that tables may be spread over."""
        found = []
        for table in metadata.sorted_tables:
            for key in table.foreign_keys:
                other = key.column
                known = sa.select(other).where(other == key.parent).exists()
                (row_key,) = table.primary_key
                orphans = self._connection.execute(sa.select(row_key).where(~known)).scalars()
                found += [f"row {row} of {table.name} refers to nothing in {other.table.name}" for row in orphans]
        return found

    def _once(self, name: Hashable, ask: Callable[[], Answer]) -> Answer:
        if not self._is_unchanging:
            return ask()
        if name not in self._known:
            self._known[name] = ask()
        found: Answer = self._known[name]
        return found

    def _of_classes(self, query: Any, within: Sequence[int] | None) -> Iterator[Any]:
        """The rows of a query on supports that are of these classes; None: of all."""
        if within is None:
            return (tuple(row) for row in self._connection.execute(query))
        return self._in_parts(query, supports.c.class_id, within)

    def _in_parts(self, query: Any, column: Any, values: Sequence[Any]) -> Iterator[Any]:
        for start in range(0, len(values), PART):
            for row in self._connection.execute(query.where(column.in_(values[start : start + PART]))):
                yield tuple(row)

    def _read_vectors(self, query: Any) -> tuple[Int64s, Float32s]:
        parts = list(self._parts_of_vectors(query))
        if not parts:
            return np.zeros(0, np.int64), np.zeros((0, self.about().dim or 0), np.float32)
        return np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])

    def _parts_of_vectors(self, query: Any) -> Iterator[tuple[Int64s, Float32s]]:
        with self._connection.execute(query.execution_options(yield_per=2000)) as result:
            for partition in result.partitions():
                ids = np.array([row[0] for row in partition], np.int64)
                yield ids, self._vectors([row[1:] for row in partition], ids)

    def _vectors(self, rows: Sequence[tuple[bytes, int]], ids: Int64s) -> Float32s:
        dim = self.about().dim or 0
        for (blob, noted), row_id in zip(rows, ids.tolist(), strict=True):
            if checksum(blob) != noted or len(blob) != 4 * dim:
                raise self._damaged(f"the vector of row {row_id} does not fit its checksum")
        return np.frombuffer(b"".join(row[0] for row in rows), "<f4").reshape(len(rows), dim).astype(np.float32)


def _vectors_of(kind: str) -> tuple[sa.Select[Any], sa.Column[Any]]:
    """What asks for id, vector and checksum of all supports or prototypes, in order of their ids, and the id."""
    table, key = VECTOR_TABLES[kind]
    return sa.select(key, table.c.vector, table.c.xxh3).order_by(key), key


def checksum(blob: bytes | Any) -> int | None:
    """xxh3-64 as a signed integer, which is what SQL has; None of what a damaged row holds instead of bytes."""
    if not isinstance(blob, bytes):
        return None
    value = int(xxhash.xxh3_64_intdigest(blob))
    return value - (1 << 64) if value >= 1 << 63 else value
