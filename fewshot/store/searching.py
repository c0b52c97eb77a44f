"""The nearest supports of a vector as the database finds them: by exact scan, or by HNSW as far as measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa

from fewshot.errors import EmptyIndexError, UsageError
from fewshot.records import NO_ID, Float32s, Int64s
from fewshot.store.drawing import drawn
from fewshot.store.schema import Vector, about, embeddings, search_settings, supports

INDEX_NAME = "embeddings_hnsw"
# The index holds `halfvec`, of which pgvector indexes up to 4,000 dimensions: two of 1,280 share a page, where a
# `vector` has one to itself. Halves only choose the candidates, which are then compared by the embeddings themselves.
MOST_DIMS = 4000
MORE_CANDIDATES = 4
# pgvector's own default is 40.
EF_TRIED = (20, 40, 80, 120, 200, 400, 700, 1000)
M, EF_CONSTRUCTION = 16, 128


@dataclass(frozen=True, slots=True)
class Measured:
    """What HNSW found of the true nearest supports, by how many candidates it kept (`hnsw.ef_search`)."""

    ef_search: int
    recall: float


def nearest(
    connection: sa.Connection, vectors: Float32s, k: int, within: Sequence[int] | None
) -> tuple[Float32s, Int64s]:
    """See `Reader.nearest_supports`."""
    known = connection.execute(sa.select(search_settings)).one_or_none()
    if known is not None:
        _set(connection, "hnsw.ef_search", _enough(int(known.ef_search), k))
        # With classes left out, HNSW's first candidates may all be of others: it goes on until it has enough.
        _set(connection, "hnsw.iterative_scan", "off" if within is None else "strict_order")
    return _search(connection, vectors, k, within, None if known is None else int(known.dim))


def build(
    connection: sa.Connection, wanted_recall: float, n_results: int, n_asked: int, on_step: Callable[[str], None]
) -> list[Measured]:
    """Build the HNSW index of the supports, and keep the least `ef_search` that finds enough of the true nearest.

    Args:
        connection: inside a transaction that may write.
        wanted_recall: in (0, 1], the share of the `n_results` nearest that shall be found.
        n_results: how many nearest supports will be asked for.
        n_asked: how many enrolled photos are asked to measure it, each without itself.
        on_step: told what is being done.

    Returns:
        What was measured, in the order tried; the last one reaches `wanted_recall`, unless none does.

    Raises:
        EmptyIndexError: nothing is enrolled.
        UsageError: the embeddings are too long for pgvector to index.
    """
    dim = connection.execute(sa.select(about.c.dim)).scalar()
    if dim is None:
        raise EmptyIndexError("the index holds no photo yet, so there is nothing to search.")
    if dim > MOST_DIMS:
        raise UsageError(
            f"pgvector indexes embeddings of up to {MOST_DIMS:,} numbers; these have {dim:,}.",
            hint="The exact scan, which the index uses without this, is right at any length.",
        )
    drop(connection)
    on_step("building the HNSW index")
    connection.exec_driver_sql(
        f"CREATE INDEX {INDEX_NAME} ON embeddings USING hnsw ((vector::halfvec({int(dim)})) halfvec_ip_ops) "
        f"WITH (m = {M}, ef_construction = {EF_CONSTRUCTION})"
    )
    connection.exec_driver_sql("ANALYZE embeddings")
    on_step("asking the exact scan")
    ids, asked = _asked(connection, n_asked)
    n = n_results + 1  # each finds itself first
    _, truth = _search(connection, asked, n, None, None)
    measured: list[Measured] = []
    _set(connection, "enable_seqscan", "off")  # a small table would be scanned, which finds everything
    for ef_search in EF_TRIED:
        on_step(f"measuring ef_search {ef_search}")
        _set(connection, "hnsw.ef_search", _enough(ef_search, n))
        _, found = _search(connection, asked, n, None, int(dim))
        measured.append(Measured(_enough(ef_search, n), _recall(ids, truth, found)))
        if measured[-1].recall >= wanted_recall:
            break
    best = measured[-1]
    connection.execute(
        search_settings.insert().values(
            one=1, dim=dim, n_results=n_results, ef_search=best.ef_search, recall=best.recall
        )
    )
    return measured


def drop(connection: sa.Connection) -> None:
    """Go back to the exact scan."""
    connection.exec_driver_sql(f"DROP INDEX IF EXISTS {INDEX_NAME}")
    connection.execute(search_settings.delete())


def drop_if_not_of(connection: sa.Connection, dim: int | None) -> None:
    """Go back to the exact scan where HNSW holds embeddings of another length than this, as it can hold no others."""
    built_for = built_dim(connection)
    if built_for is not None and built_for != dim:
        drop(connection)


def built_dim(connection: sa.Connection) -> int | None:
    """The length of the embeddings that the HNSW index holds; None: there is none."""
    return connection.execute(sa.select(search_settings.c.dim)).scalar()


def _search(
    connection: sa.Connection, vectors: Float32s, k: int, within: Sequence[int] | None, indexed_dim: int | None
) -> tuple[Float32s, Int64s]:
    similarities = np.full((len(vectors), k), -np.inf, np.float32)
    ids = np.full((len(vectors), k), NO_ID, np.int64)
    query = _query(k, within, indexed_dim)
    for row, vector in enumerate(vectors):
        found = connection.execute(query, {"asked": np.ascontiguousarray(vector, "<f4").tobytes()}).all()
        ids[row, : len(found)] = [each[0] for each in found]
        similarities[row, : len(found)] = [each[1] for each in found]
    return similarities, ids


def _query(k: int, within: Sequence[int] | None, indexed_dim: int | None) -> Any:
    asked = sa.bindparam("asked", type_=Vector)
    stored: Any = sa.type_coerce(embeddings.c.vector, sa.types.NullType())
    # pgvector's inner product is negative, so that less is nearer.
    distance = stored.op("<#>", return_type=sa.Float())(asked)
    near, n = distance, k
    if indexed_dim is not None:
        halves = _Halves(indexed_dim)
        near = sa.cast(stored, halves).op("<#>", return_type=sa.Float())(sa.cast(asked, halves))
        n = MORE_CANDIDATES * k
    chosen = sa.select(embeddings.c.support_id, distance.label("distance"))
    if within is not None:
        chosen = chosen.join(supports, supports.c.support_id == embeddings.c.support_id)
        # One array, not a parameter a class: a statement has no more than 65,535.
        class_ids = sa.literal([int(class_id) for class_id in within], sa.ARRAY(sa.BigInteger))
        chosen = chosen.where(supports.c.class_id == sa.any_(class_ids))
    part = chosen.order_by(near).limit(n).subquery()
    return sa.select(part.c.support_id, -part.c.distance).order_by(part.c.distance, part.c.support_id).limit(k)


class _Halves(sa.types.UserDefinedType[Any]):
    """`halfvec(1280)`: what an index is made of; the column itself takes any length."""

    cache_ok = True

    def __init__(self, dim: int) -> None:
        self.dim = dim

    def get_col_spec(self, **_options: Any) -> str:
        """The type with its length."""
        return f"halfvec({self.dim})"


def _enough(ef_search: int, k: int) -> int:
    """HNSW gives no more than it keeps; 1,000 is pgvector's most."""
    return min(1000, max(ef_search, MORE_CANDIDATES * k))


def _asked(connection: sa.Connection, n: int) -> tuple[Int64s, Float32s]:
    """Enrolled photos, evenly chosen: ids and embeddings."""
    total = connection.execute(sa.select(sa.func.count()).select_from(embeddings)).scalar_one()
    query = sa.select(embeddings.c.support_id, embeddings.c.vector).order_by(embeddings.c.support_id)
    rows = connection.execute(query.where(drawn(embeddings.c.support_id, total, n))).all()
    if not rows:
        raise EmptyIndexError("the index holds no photo yet, so there is nothing to search.")
    return np.array([row[0] for row in rows], np.int64), np.stack([np.frombuffer(row[1], "<f4") for row in rows])


def _recall(asked: Int64s, truth: Int64s, found: Int64s) -> float:
    """The share of the true nearest that were found; a photo's own row does not count."""
    hits = total = 0
    for own, true_row, found_row in zip(asked.tolist(), truth.tolist(), found.tolist(), strict=True):
        wanted = set(true_row) - {own, NO_ID}
        hits, total = hits + len(wanted & set(found_row)), total + len(wanted)
    return hits / max(1, total)


def _set(connection: sa.Connection, name: str, value: object) -> None:
    connection.execute(sa.select(sa.func.set_config(name, str(value), True)))
