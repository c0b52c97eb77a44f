"""Changes to an index, inside one transaction."""

import os
import secrets
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.dialects import sqlite

from fewshot.datasets import legible
from fewshot.errors import LabelTakenError
from fewshot.records import EmbeddedPhoto, Float32s, Int64s
from fewshot.store import searching
from fewshot.store.reading import PART, VECTOR_TABLES, Place, Reader, checksum
from fewshot.store.schema import (
    APPLICATION_ID,
    FORMAT_VERSION,
    GUARDS,
    about,
    classes,
    embeddings,
    fewshot_format,
    history,
    metadata,
    prototypes,
    removals,
    server_metadata,
    staged,
    supports,
    thumbnails,
    tokens,
)

# Where a server tells its other clients of a change.
CHANNEL = "fewshot_change"


class Writer(Reader):
    """Changes to an index, inside one transaction; every change counts the generation up once."""

    _is_unchanging = False

    def __init__(self, place: Place, connection: sa.Connection) -> None:
        super().__init__(place, connection)
        self._generation: int | None = None

    def create_tables(self) -> None:
        """Lay out a new index, unless another process has just done so."""
        if has_table(self._connection, about.name):
            return
        self.create_empty_tables()
        self._connection.execute(about.insert().values(one=1, created_at=_now(), generation=0))

    def create_empty_tables(self) -> None:
        """Lay out the tables and say whose they are, in which format."""
        metadata.create_all(self._connection, checkfirst=False)
        if self._is_file:
            for name, (table, columns) in GUARDS.items():
                self._connection.exec_driver_sql(f"CREATE INDEX {name} ON {table} ({', '.join(columns)})")
            self._connection.exec_driver_sql(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.exec_driver_sql(f"PRAGMA user_version = {FORMAT_VERSION}")
            return
        server_metadata.create_all(self._connection, checkfirst=False)
        self._connection.execute(fewshot_format.insert().values(one=1, version=FORMAT_VERSION))

    def generation(self) -> int:
        """The generation that this transaction makes."""
        if self._generation is None:
            self._connection.execute(about.update().values(generation=about.c.generation + 1))
            self._generation = self.about().generation
        return self._generation

    def pin_embedder(self, facts: dict[str, Any]) -> None:
        """Say which embedder made this index's embeddings: its fingerprint, precision, dim, source and backbone."""
        self._connection.execute(about.update().values(**facts))

    def add_class(self, label: str) -> int:
        """The class of a label, made if there is none."""
        found = self.class_id(label)
        if found is not None:
            return found
        result = self._connection.execute(classes.insert().values(label=label, created_at=_now()))
        return _new_id(result)

    def add_supports(self, class_id: int, photos: Sequence[EmbeddedPhoto]) -> list[int]:
        """Add photos to a class; their ids, in order."""
        if not photos:
            return []
        rows = [
            {
                "class_id": class_id,
                "sha256": photo.sha256,
                "file": Path(photo.file).name.replace("\0", ""),  # which no server stores in a text
                "width": photo.width,
                "height": photo.height,
                "dhash": photo.dhash,
                "added_at": _now(),
                "generation": self.generation(),
            }
            for photo in photos
        ]
        made = supports.insert().returning(supports.c.support_id, sort_by_parameter_order=True)
        ids = [int(support_id) for support_id in self._connection.execute(made, rows).scalars()]
        pairs = list(zip(ids, photos, strict=True))
        self._connection.execute(
            embeddings.insert(), [{"support_id": i, **_packed(photo.embedding)} for i, photo in pairs]
        )
        kept = [
            {"support_id": i, "webp": photo.thumbnail, "xxh3": checksum(photo.thumbnail)}
            for i, photo in pairs
            if photo.thumbnail is not None
        ]
        if kept:
            self._connection.execute(thumbnails.insert(), kept)
        return ids

    def set_prototypes(self, class_id: int, vectors: Float32s) -> None:
        """Replace the prototypes of a class: (n_prototypes, dim) float32, rows of unit length."""
        self._drop("prototype", prototypes.c.prototype_id, prototypes.c.class_id == class_id)
        for vector in vectors:
            self._connection.execute(
                prototypes.insert().values(class_id=class_id, generation=self.generation(), **_packed(vector))
            )

    def set_own_similarities(self, support_ids: Int64s, values: Float32s | None, subjects: Int64s) -> None:
        """Note how well the supports of a class fit the others, and which of them show one plant.

        Args:
            support_ids: (n,) int64.
            values: (n,) float32, each one's cosine to the prototype of the others; None where it is alone.
            subjects: (n,) int64, see `subjects.subjects`.
        """
        _, first, place, n_shots = np.unique(subjects, return_index=True, return_inverse=True, return_counts=True)
        rows = [
            {
                "id": int(support_id),
                "value": None if values is None else float(values[i]),
                "first": int(support_ids[first[place[i]]]) if n_shots[place[i]] > 1 else None,
            }
            for i, support_id in enumerate(support_ids)
        ]
        if rows:
            update = supports.update().where(supports.c.support_id == sa.bindparam("id"))
            learnt: dict[str, Any] = {"own_similarity": sa.bindparam("value"), "subject": sa.bindparam("first")}
            self._connection.execute(update.values(**learnt), rows)

    def remove_class(self, class_id: int) -> int:
        """Remove a class and its photos; how many photos."""
        self._drop("prototype", prototypes.c.prototype_id, prototypes.c.class_id == class_id)
        n = self._drop("support", supports.c.support_id, supports.c.class_id == class_id)
        self._connection.execute(classes.delete().where(classes.c.class_id == class_id))
        return n

    def remove_supports(self, support_ids: Sequence[int]) -> int:
        """Remove photos; how many. Their class's prototypes stay as they are: the caller learns the class anew."""
        parts = [support_ids[start : start + PART] for start in range(0, len(support_ids), PART)]
        return sum(self._drop("support", supports.c.support_id, supports.c.support_id.in_(part)) for part in parts)

    def rename_class(self, class_id: int, label: str) -> None:
        """Give a class another label.

        Raises:
            LabelTakenError: another class has it.
        """
        taken = self.class_id(label)
        if taken is not None and taken != class_id:
            raise LabelTakenError(
                f"index {self._place.name!r} already holds a class {label!r}.",
                hint="Choose another name; to merge two classes, remove one and enroll its photos into the other.",
            )
        self._connection.execute(classes.update().where(classes.c.class_id == class_id).values(label=label))

    def stage(self, fingerprint: str, vectors: dict[int, Float32s]) -> None:
        """Keep new embeddings of supports aside until all are there."""
        rows = [
            {"support_id": support_id, "fingerprint": fingerprint, **_packed(vector)}
            for support_id, vector in vectors.items()
        ]
        if rows:
            insert: Any = sqlite.insert(staged) if self._is_file else _database_insert(staged)
            key = [staged.c.support_id]
            put = insert.on_conflict_do_update(index_elements=key, set_=dict(insert.excluded))
            self._connection.execute(put, rows)

    def adopt_staged(self, fingerprint: str) -> None:
        """Make the staged embeddings the index's own; the caller has seen that none is missing.

        A database's search index is of one length of embeddings: pinned to another, the index goes back to the exact
        scan.
        """
        if not self._is_file:
            searching.drop_if_not_of(self._connection, self.about().dim)
        done = sa.select(staged.c.support_id, staged.c.vector, staged.c.xxh3).where(staged.c.fingerprint == fingerprint)
        self._connection.execute(embeddings.delete())
        self._connection.execute(embeddings.insert().from_select(["support_id", "vector", "xxh3"], done))
        self._connection.execute(staged.delete())
        self._connection.execute(supports.update().values(generation=self.generation()))

    def build_search_index(
        self, wanted_recall: float, n_results: int, n_asked: int, on_step: Callable[[str], None]
    ) -> list[searching.Measured]:
        """Let a database search its supports by HNSW; see `searching.build`."""
        return searching.build(self._connection, wanted_recall, n_results, n_asked, on_step)

    def drop_search_index(self) -> None:
        """Let a database search its supports by an exact scan again."""
        searching.drop(self._connection)

    def count_from(self, table: sa.Table, highest: int) -> None:
        """Give the next rows of a table keys above this one."""
        (key,) = table.primary_key
        if not self._is_file:
            query = sa.text("SELECT setval(pg_get_serial_sequence(:table, :key), :highest)")
            self._connection.execute(query, {"table": table.name, "key": key.name, "highest": highest})
        elif table.kwargs.get("sqlite_autoincrement"):
            known = {"name": table.name, "highest": highest}
            self._connection.execute(sa.text("DELETE FROM sqlite_sequence WHERE name = :name"), known)
            self._connection.execute(sa.text("INSERT INTO sqlite_sequence VALUES (:name, :highest)"), known)

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
        self._tell()

    def keep_token(self, token_id: str, name: str, facts: dict[str, Any]) -> None:
        """Keep a token of a server's index.

        Raises:
            LabelTakenError: there is one of this name.
        """
        if self._connection.execute(sa.select(tokens.c.token_id).where(tokens.c.name == name)).scalar() is not None:
            raise LabelTakenError(f"index {self._place.name!r} has a token named {name!r} already.")
        self._connection.execute(tokens.insert().values(token_id=token_id, name=name, facts=facts))
        self._tell()

    def drop_token(self, token_id: str) -> None:
        """Forget a token of a server's index."""
        self._connection.execute(tokens.delete().where(tokens.c.token_id == token_id))
        self._tell()

    def _tell(self) -> None:
        """Let others know of a change, once it is kept."""
        if not self._is_file:
            self._connection.execute(sa.select(sa.func.pg_notify(CHANNEL, sa.func.current_schema())))

    def take_beside(self) -> None:
        """Hold what the file beside holds, an earlier state of this index (`Store.write(beside=...)`).

        Ids go on naming what they named, the history stays, and everything is noted as removed and written again, so
        that caches made before can be caught up. The caller writes the line of history.
        """
        generation = sa.literal(self.generation())
        for kind, (_, key) in VECTOR_TABLES.items():
            gone = sa.select(sa.literal(kind), key, generation)
            self._connection.execute(removals.insert().from_select(["kind", "removed_id", "generation"], gone))
        content = (classes, supports, embeddings, thumbnails, prototypes)  # owners before what refers to them
        for table in reversed((*content, staged)):
            self._connection.execute(table.delete())
        for table in content:
            names = [column.name for column in table.columns]
            there = sa.select(*(generation if name == "generation" else sa.column(name) for name in names))
            there = there.select_from(sa.table(table.name, schema="beside"))
            self._connection.execute(table.insert().from_select(names, there))
        facts = [column.name for column in about.columns if column.name not in ("one", "created_at", "generation")]
        source = sa.table(about.name, *map(sa.column, facts), schema="beside")
        self._connection.execute(
            about.update().values({name: sa.select(source.c[name]).scalar_subquery() for name in facts})
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


def has_table(connection: sa.Connection, name: str) -> bool:
    """Whether the file, or the schema that a server would make tables in, has this table; others' do not count."""
    schema = None
    if connection.dialect.name != "sqlite":
        schema = str(connection.exec_driver_sql("SELECT current_schema()").scalar_one())
    return sa.inspect(connection).has_table(name, schema=schema)


def _database_insert(table: sa.Table) -> Any:
    from sqlalchemy.dialects import postgresql  # takes longer to load than a photo to embed; a folder needs it never

    return postgresql.insert(table)


def _packed(vector: Float32s) -> dict[str, Any]:
    blob = np.ascontiguousarray(vector, "<f4").tobytes()
    return {"vector": blob, "xxh3": checksum(blob)}


def _new_id(result: "sa.CursorResult[Any]") -> int:
    key = result.inserted_primary_key
    assert key is not None
    return int(key[0])


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _who() -> str:
    return legible(os.environ.get("FEWSHOT_USER") or os.environ.get("USER") or f"uid {os.getuid()}")
