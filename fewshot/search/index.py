"""Vectors under integer ids, searched by inner product; saved as a sealed file and mapped from it."""

import math
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from fewshot.errors import CacheDamagedError, VectorError
from fewshot.records import NO_ID, Float32s, Int64s
from fewshot.sealed import verify, write_sealed
from fewshot.search.bases import (
    CELLS_LIMIT,
    DIMENSIONS_A_CODE,
    EXACT_LIMIT,
    N_PROPOSED,
    SAMPLES_A_CELL,
    TRAINING_SAMPLE,
    WANTED_RECALL,
    HeldOut,
    ask,
    cell_ids,
    cells,
    cells_around,
    exact,
    has_cells,
    least_read,
    n_cells,
    parameters,
    put_in_cells,
    quantised,
)

VectorsOf = Callable[[Int64s], Float32s]
# The file is opened by name more than once: where another process replaces it in between, it is opened anew.
MOST_OPENINGS = 5
# Vectors around which others lie, (n, dim) float32 of unit length, and ids -> the row of each one's own.
Centres = tuple[Float32s, Callable[[Int64s], Int64s]]


class VectorIndex:
    """Unit vectors under integer ids, searched by inner product (their cosine).

    A base that never changes (it may be mapped from a file) carries what was there when it was built; vectors added
    later go to a small exact index beside it, removed ones are passed over. So opening a large index costs no copy,
    and a change costs what it changes.

    Args:
        dim: the vectors' length.
        exact_limit: above so many vectors a base is quantised to 8 bits a dimension (similarities then carry an
            error of about 0.001, unless `search` is given the vectors).
        cells_limit: above so many, and above `exact_limit`, the vectors of a base lie in cells, of which a search
            reads some; None: never.
        unit: whether vectors of another length than 1 are refused. Without, similarities are dot products.

    Attributes:
        facts: what `build` found of its base: `kind` (exact, quantised or cells), and of cells how many there are
            (`n_cells`), how many of them a search reads (`n_read`) and which part of `N_HELD_OUT` enrolled vectors
            finds its nearest other one so (`recall`).
    """

    def __init__(
        self, dim: int, *, exact_limit: int = EXACT_LIMIT, cells_limit: int | None = CELLS_LIMIT, unit: bool = True
    ) -> None:
        self.dim = dim
        self.exact_limit = exact_limit
        self.cells_limit = cells_limit
        self.unit = unit
        self.facts: dict[str, Any] = {"kind": "exact"}
        self._base = exact(dim)
        self._n_base = 0
        self._fresh = exact(dim)
        self._base_ids: Int64s | None = None  # ascending; read from the base when first asked for
        self._gone: set[int] = set()
        self._passing_over: tuple[Any, Any] | None = None  # faiss's selector of what is not gone, and the one in it
        self._fresh_ids: set[int] = set()

    def __len__(self) -> int:
        return self._n_base - len(self._gone) + len(self._fresh_ids)

    @property
    def is_exact(self) -> bool:
        """Whether similarities are exact (to float32 rounding)."""
        return bool(self.facts["kind"] == "exact")

    @property
    def n_pending(self) -> int:
        """How many changes stand beside the base: what a rebuild would fold in."""
        return len(self._fresh_ids) + len(self._gone)

    def build(self, ids: Int64s, vectors: Float32s) -> None:
        """Replace the whole content.

        Raises:
            VectorError: see `add`.
        """
        ids, vectors = self._checked(ids, vectors)
        n = self.n_training(len(ids))
        sample = slice(0, 0) if n == 0 else slice(None, None, max(1, len(ids) // n))
        self.build_from(len(ids), (ids[sample], vectors[sample]), lambda: [(ids, vectors)])

    def n_training(self, n_vectors: int) -> int:
        """About how many of so many vectors `build_from` wants as its sample."""
        if n_vectors <= self.exact_limit:
            return 0
        return max(TRAINING_SAMPLE, SAMPLES_A_CELL * n_cells(n_vectors) if self._wants_cells(n_vectors) else 0)

    def build_from(
        self,
        n_vectors: int,
        sample: tuple[Int64s, Float32s],
        parts: Callable[[], Iterable[tuple[Int64s, Float32s]]],
        centres: Callable[[], Centres | None] | None = None,
    ) -> None:
        """Replace the whole content by what comes in parts, so that it need not be in memory as a whole.

        Args:
            n_vectors: how many will come.
            sample: ids and vectors of about `n_training(n_vectors)` of them, evenly chosen.
            parts: gives ids and vectors, each time it is called from the start. It is called a second time where
                cells prove to be of no use.
            centres: gives what the vectors are known to lie around, if anything. More of these than cells would be
                fitted are taken as the cells themselves.

        Raises:
            VectorError: see `add`.
        """
        sample = self._checked(*sample)
        facts: dict[str, Any] = {"kind": "exact"}
        if n_vectors <= self.exact_limit:
            base, ids = self._filled(exact(self.dim), parts())
        elif self._wants_cells(n_vectors):
            asked = HeldOut(*sample)
            known = centres() if centres is not None else None
            if known is not None and len(known[0]) > n_cells(n_vectors) and self.dim % DIMENSIONS_A_CODE == 0:
                base, ids = self._filled(cells_around(known[0], sample[1]), parts(), asked, known[1])
            else:
                base, ids = self._filled(cells(self.dim, sample[1], n_cells(n_vectors)), parts(), asked)
            facts = {"kind": "cells", **least_read(base, asked)}
        if n_vectors > self.exact_limit and facts.get("recall", 0.0) < WANTED_RECALL:
            facts = {"kind": "quantised"} | ({"recall_in_cells": facts["recall"]} if "recall" in facts else {})
            base, ids = self._filled(quantised(self.dim, sample[1]), parts())
        self._base, self._n_base, self._base_ids, self.facts = base, len(ids), ids, facts
        self._fresh, self._fresh_ids, self._gone = exact(self.dim), set(), set()
        self._passing_over = None

    def _filled(
        self,
        base: Any,
        parts: Iterable[tuple[Int64s, Float32s]],
        asked: HeldOut | None = None,
        rows_of: Callable[[Int64s], Int64s] | None = None,
    ) -> tuple[Any, Int64s]:
        """A base with everything in it, and the ids in ascending order."""
        seen: list[Int64s] = [np.zeros(0, np.int64)]
        for part_ids, part in parts:
            part_ids, part = self._checked(part_ids, part)
            if rows_of is None:
                base.add_with_ids(part, part_ids)
            else:
                put_in_cells(base, part_ids, part, rows_of(part_ids))
            seen.append(part_ids)
            if asked is not None:
                asked.compare(part_ids, part)
        ids = np.sort(np.concatenate(seen))
        if (ids[1:] == ids[:-1]).any():
            raise VectorError("an id is given twice.")
        return base, ids

    def _wants_cells(self, n_vectors: int) -> bool:
        return self.cells_limit is not None and n_vectors > max(self.exact_limit, self.cells_limit)

    def add(self, ids: Int64s, vectors: Float32s) -> None:
        """Add vectors.

        Args:
            ids: (n,) int64, each 0 or more, new and given once.
            vectors: (n, dim) float32, rows of unit length.

        Raises:
            VectorError: a wrong shape, NaN or infinite numbers, not unit length, or an id that is there already.
                faiss itself would take all of these.
        """
        ids, vectors = self._checked(ids, vectors)
        held = self._held(ids)
        if held.any():
            raise VectorError(f"id {ids[held][0]} is in the index already.")
        if len(ids):
            self._fresh.add_with_ids(vectors, ids)
            self._fresh_ids.update(ids.tolist())

    def remove(self, ids: Int64s) -> None:
        """Remove vectors; ids that are not there are passed over."""
        fresh = [i for i in ids.tolist() if i in self._fresh_ids]
        if fresh:
            self._fresh.remove_ids(np.array(fresh, np.int64))
            self._fresh_ids.difference_update(fresh)
        if len(ids):
            self._gone.update(ids[self._in_base(ids)].tolist())
            self._passing_over = None

    def search(
        self, queries: Float32s, k: int, only: Int64s | None = None, vectors_of: VectorsOf | None = None
    ) -> tuple[Float32s, Int64s]:
        """The k nearest vectors of each query.

        Args:
            queries: (n_query, dim) float32.
            k: how many; where the index holds fewer, the rest is padded.
            only: ids to search among; None: all.
            vectors_of: ids -> their vectors (n, dim) float32. Where the base is not exact it then proposes some, and
                their similarities are computed from the vectors themselves.

        Returns:
            Similarities (n_query, k) float32, highest first, and ids (n_query, k) int64. Padding has id -1 and
            similarity -inf. Equal similarities come in the order of their ids.

        Raises:
            VectorError: a wrong shape, NaN or infinite numbers.
        """
        if k < 1:
            raise VectorError(f"k is {k}; wanted 1 or more.")
        if self.is_exact:
            vectors_of = None  # similarities are those of the vectors themselves already
        is_one = only is None and vectors_of is None and queries.shape == (1, self.dim)
        if is_one and k < self._n_base and not self.n_pending:
            # What nearly every question is, without the steps that the others need: they would take as long as faiss
            # does among a thousand vectors.
            similarities, ids = ask(self._base, np.ascontiguousarray(queries, np.float32), k + 1)
            found = similarities[0].tolist()
            # Nothing equal, as two places are that nothing is found for; and finite, which no similarity is where the
            # query holds NaN or infinity: then faiss finds nothing or infinity.
            if len(set(found)) > k and math.isfinite(found[0]):
                return similarities[:, :k], ids[:, :k]
        queries = self._checked_rows(queries)
        if vectors_of is None:
            similarities, ids = self._search_one(self._base, queries, k, self._gone, only)
        else:
            _, ids = self._search_one(self._base, queries, max(4 * k, N_PROPOSED), self._gone, only)
            similarities = _scored(queries, ids, vectors_of)
        in_order = vectors_of is None
        if self._fresh_ids:
            fresh = self._search_one(self._fresh, queries, k, set(), only)
            similarities = np.concatenate([similarities, fresh[0]], axis=1)  # (n_query, at least k)
            ids = np.concatenate([ids, fresh[1]], axis=1)
            in_order = False
        if in_order and not (similarities[:, 1:] == similarities[:, :-1]).any():  # NO_ID comes last, all alike
            return similarities[:, :k], ids[:, :k]
        similarities[ids == NO_ID] = -np.inf
        order = np.lexsort((ids, -similarities), axis=1)[:, :k]
        return np.take_along_axis(similarities, order, axis=1), np.take_along_axis(ids, order, axis=1)

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the content as a sealed file; changes beside the base must have been folded in by `build`.

        Raises:
            OSError, RuntimeError: the file cannot be written (faiss raises the latter); what stood there is untouched.
        """
        assert self.n_pending == 0, "fold pending changes in before saving"
        everything = {**facts, "dim": self.dim, "n_vectors": self._n_base, "base": self.facts}
        write_sealed(path, self._write, everything)

    def _write(self, target: Path) -> None:
        with _named(target, os.O_WRONLY | os.O_CREAT) as name:
            faiss.write_index(self._base, name)

    @classmethod
    def open(cls, path: Path, expected: dict[str, Any]) -> tuple["VectorIndex", dict[str, Any]]:
        """Map a saved index into memory, after checking every byte of it.

        Args:
            path: a file that `save` wrote.
            expected: facts that it must carry, such as the fingerprint of its embeddings.

        Returns:
            The index and all facts saved with it.

        Raises:
            CacheDamagedError: missing, damaged, or with other facts than expected.
        """
        for _ in range(MOST_OPENINGS):
            there = _file_at(path)
            try:
                base, facts = _verified_base(path, expected)
            except CacheDamagedError:
                if _file_at(path) == there:
                    raise
                continue
            if _file_at(path) == there:
                break
        else:
            raise CacheDamagedError(f"{path} was replaced whenever it was opened, {MOST_OPENINGS} times.")
        kind = facts["base"]["kind"]
        index = cls(int(facts["dim"]))
        index._base, index._n_base, index._base_ids = base, int(base.ntotal), None
        index.facts = dict(facts["base"])
        if kind == "cells":
            base.nprobe = index.facts["n_read"]
        return index, facts

    def _ids_of_base(self) -> Int64s:
        """The ids in the base, ascending."""
        if self._base_ids is None:
            base: Any = faiss.downcast_index(self._base)
            self._base_ids = np.sort(cell_ids(base) if has_cells(base) else faiss.vector_to_array(base.id_map))
        return self._base_ids

    def _in_base(self, ids: Int64s) -> np.ndarray:
        known = self._ids_of_base()
        if not len(known):
            return np.zeros(len(ids), bool)
        places = np.minimum(np.searchsorted(known, ids), len(known) - 1)
        return np.asarray(known[places] == ids)

    def _held(self, ids: Int64s) -> np.ndarray:
        """Which of these ids are in the index: (n,) bool."""
        gone = np.array([i in self._gone for i in ids.tolist()], bool)
        fresh = np.array([i in self._fresh_ids for i in ids.tolist()], bool)
        return np.asarray(fresh | (self._in_base(ids) & ~gone))

    def _search_one(
        self, index: Any, queries: Float32s, k: int, gone: set[int], only: Int64s | None
    ) -> tuple[Float32s, Int64s]:
        selector: Any = None
        if only is not None:
            selector = faiss.IDSelectorBatch(np.setdiff1d(only, np.fromiter(gone, np.int64, len(gone))))
        elif gone:
            if self._passing_over is None:  # to make it takes longer than to search with it
                batch: Any = faiss.IDSelectorBatch(np.fromiter(gone, np.int64, len(gone)))
                self._passing_over = faiss.IDSelectorNot(batch), batch
            selector = self._passing_over[0]
        n = index.ntotal
        in_cells = has_cells(index)
        # The cells near a query may hold none of the few vectors that are asked for.
        n_read = 0 if not in_cells else index.nlist if only is not None else index.nprobe
        # Of equal similarities faiss keeps those added first. One more is asked for than wanted, and more while the
        # last ones are equal, so that which ids are kept does not depend on the order in which they came.
        n_asked = min(n, k + 1)
        if n_asked == 0:
            return np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), NO_ID, np.int64)
        while True:
            # Without parameters faiss reads what `nprobe` says; making them takes as long as reading a few cells.
            usual = selector is None and (not in_cells or n_read == index.nprobe)
            told = None if usual else parameters(selector, in_cells, n_read)
            similarities, ids = ask(index, queries, n_asked, told)
            if in_cells and n_read < index.nlist and (ids[:, min(k, n - len(gone), n_asked) - 1] == NO_ID).any():
                n_read = min(index.nlist, 4 * n_read)  # the cells read hold fewer than are wanted
                continue
            if n_asked <= k or n_asked == n:
                break
            if not ((similarities[:, k - 1] == similarities[:, -1]) & (ids[:, -1] != NO_ID)).any():
                break
            n_asked = min(n, 4 * n_asked)
        short = k - ids.shape[1]
        if short <= 0 and (selector is None or ids[:, -1].min(initial=0) >= 0):
            return similarities, ids
        short = max(0, short)
        similarities = np.pad(similarities, ((0, 0), (0, short)), constant_values=-np.inf)
        ids = np.pad(ids, ((0, 0), (0, short)), constant_values=NO_ID)
        similarities[ids == NO_ID] = -np.inf
        return similarities, ids

    def _checked(self, ids: Int64s, vectors: Float32s) -> tuple[Int64s, Float32s]:
        ids = np.ascontiguousarray(ids, np.int64)
        vectors = self._checked_rows(vectors)
        if ids.shape != (len(vectors),):
            raise VectorError(f"{ids.shape} ids were given for {len(vectors)} vectors.")
        if len(ids) and ids.min() < 0:
            raise VectorError(f"id {ids.min()} is negative.")
        ordered = np.sort(ids)  # np.unique would load numpy.ma, which nothing here has a use for
        if (ordered[1:] == ordered[:-1]).any():
            raise VectorError("an id is given twice.")
        norms = np.linalg.norm(vectors, axis=1)
        if self.unit and len(norms) and not np.allclose(norms, 1.0, atol=1e-3):
            raise VectorError(f"a vector has length {norms[np.argmax(np.abs(norms - 1))]:.3f}; wanted 1.")
        return ids, vectors

    def _checked_rows(self, vectors: Float32s) -> Float32s:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise VectorError(f"vectors have shape {vectors.shape}; wanted (n, {self.dim}).")
        # The sum of squares is finite where all are, and found in a fifth of the time; it may also overflow.
        if not math.isfinite(np.vdot(vectors, vectors)) and not np.isfinite(vectors).all():
            raise VectorError("a vector holds NaN or infinite numbers.")
        return vectors


def _verified_base(path: Path, expected: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """What faiss reads of a saved index, and its facts; of one file only where no other took its place meanwhile."""
    facts = verify(path)
    for name, value in expected.items():
        if facts.get(name) != value:
            raise CacheDamagedError(f"{path} has {name} {facts.get(name)!r}; wanted {value!r}.")
    kind = facts.get("base", {}).get("kind")
    try:
        # Two flags for one wish: the lists of cells are mapped by another part of faiss than plain codes are.
        with _named(path, os.O_RDONLY) as name:
            base = faiss.read_index(name, faiss.IO_FLAG_MMAP if kind == "cells" else faiss.IO_FLAG_MMAP_IFC)
    except RuntimeError as error:
        raise CacheDamagedError(f"{path} was written by a faiss whose files this one does not read.") from error
    if kind is None:
        raise CacheDamagedError(f"{path} was written by an earlier version.")
    return base, facts


@contextmanager
def _named(path: Path, flags: int) -> Iterator[str]:
    """A name of the file that faiss takes: UTF-8, which its own need not be. With `flags` it would be opened."""
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        descriptor = os.open(path, flags, 0o666)
        try:
            yield f"/dev/fd/{descriptor}"
        finally:
            os.close(descriptor)
        return
    yield os.fspath(path)


def _file_at(path: Path) -> tuple[int, int, int, int] | None:
    """Which file stands there, None where none does: another one, or another content, is told by it."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _scored(queries: Float32s, ids: Int64s, vectors_of: VectorsOf) -> Float32s:
    """Each query's similarity to the vectors of its row of ids: (n_query, n) float32, -inf for `NO_ID`."""
    different, places = np.unique(ids, return_inverse=True)
    first = int(different[0] == NO_ID) if len(different) else 0
    vectors = np.zeros((len(different), queries.shape[1]), np.float32)
    if len(different) > first:
        vectors[first:] = vectors_of(different[first:])
    rows = vectors[places.reshape(ids.shape)]  # (n_query, n, dim)
    similarities: Float32s = np.einsum("qd,qnd->qn", queries, rows).astype(np.float32)
    similarities[ids == NO_ID] = -np.inf
    return similarities
