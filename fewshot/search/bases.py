"""What a vector index keeps its vectors in: exact, in 8 bits a dimension, or in cells of which a search reads some."""

from typing import Any

import faiss
import numpy as np

from fewshot.records import NO_ID, Float32s, Int64s

# Which kind of base holds how many vectors; `benchmarks/search.py` measures all three, and what others do beside them.
# Up to the first limit exact search is fast enough and needs no training; beyond, a byte a dimension is kept. Up to the
# second limit all of it is read, which is no faster; beyond, the vectors lie in cells and only those near the query are
# read.
EXACT_LIMIT = 200_000
CELLS_LIMIT = 10_000
TRAINING_SAMPLE = 20_000
# Of a base in cells: how many there are for n vectors (this times the root of n, as a power of two), and on how many
# vectors each its centre is fitted.
CELLS_A_ROOT, SAMPLES_A_CELL, CELL_ROUNDS = 2, 40, 8
# So many enrolled vectors are asked for their nearest other one when a base is built. As few cells are read as find so
# large a part of them; where more than this part of all cells would be read, all vectors are read instead.
N_HELD_OUT, WANTED_RECALL, MOST_READ = 500, 0.995, 0.25
# What a base that is not exact proposes at least, to be scored anew with the vectors themselves.
N_PROPOSED = 16


def exact(dim: int) -> Any:
    """An empty base that keeps vectors as they are."""
    return faiss.IndexIDMap(faiss.IndexFlatIP(dim))


def quantised(dim: int, sample: Float32s) -> Any:
    """An empty base of one byte a dimension, its range taken from a sample."""
    inner = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    inner.train(np.ascontiguousarray(sample[:: max(1, len(sample) // TRAINING_SAMPLE)]))
    return faiss.IndexIDMap(inner)


def ask(base: Any, queries: Float32s, k: int, told: Any = None) -> tuple[Float32s, Int64s]:
    """The k nearest of each query, as faiss finds them: similarities and ids, both (n_query, k)."""
    similarities, ids = np.empty((len(queries), k), np.float32), np.empty((len(queries), k), np.int64)
    pointer = faiss.swig_ptr
    base.search_c(len(queries), pointer(queries), k, pointer(similarities), pointer(ids), told)
    return similarities, ids


# ---- a base in cells


def n_cells(n_vectors: int) -> int:
    """How many cells so many vectors get: a power of two.

    >>> n_cells(1_000_000)
    2048
    """
    return int(2 ** max(1, round(np.log2(CELLS_A_ROOT * np.sqrt(n_vectors)))))


def cells(dim: int, sample: Float32s, n_cells: int) -> Any:
    """An empty base in cells, fitted to a sample; what is kept of a vector is its way from the cell's centre."""
    centres = faiss.IndexFlatIP(dim)
    base = faiss.IndexIVFScalarQuantizer(
        centres, dim, n_cells, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, True
    )
    base.cp.niter, base.cp.spherical = CELL_ROUNDS, True
    # Few points a centre are warned of on stdout, which belongs to the answers.
    base.cp.min_points_per_centroid, base.cp.max_points_per_centroid = 1, SAMPLES_A_CELL
    base.train(np.ascontiguousarray(sample))
    return base


# Of the codes by which the nearest of many given centres are found: so many dimensions share four bits.
DIMENSIONS_A_CODE = 2


def cells_around(centres: Float32s, sample: Float32s) -> Any:
    """An empty base with a cell around each of very many given centres; a search goes through them all, in short codes.

    Source:
        André et al. 2015, "Cache locality is not enough", for codes that are looked up in registers; faiss' `FastScan`.
        A graph (HNSW) of the centres answers as fast, takes far longer to make, and never reaches some of them.
    """
    n, dim = centres.shape
    codes = faiss.IndexPQFastScan(dim, dim // DIMENSIONS_A_CODE, 4, faiss.METRIC_INNER_PRODUCT)
    codes.pq.cp.min_points_per_centroid = 1
    # Each part is fitted in moments; threads that wait for each other at every step of it would take minutes on a busy
    # machine.
    n_threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        codes.train(np.ascontiguousarray(centres[:: max(1, n // TRAINING_SAMPLE)]))
    finally:
        faiss.omp_set_num_threads(n_threads)
    codes.add(centres)
    base = faiss.IndexIVFScalarQuantizer(
        codes, dim, n, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT, False
    )
    base.train(np.ascontiguousarray(sample[:: max(1, len(sample) // TRAINING_SAMPLE)]))
    return base


def put_in_cells(base: Any, ids: Int64s, vectors: Float32s, rows: Int64s) -> None:
    """Add vectors, each to the cell whose number is given."""
    pointer = faiss.swig_ptr
    numbers = np.ascontiguousarray(rows, np.int64)
    base.add_core(len(ids), pointer(vectors), pointer(ids), pointer(numbers))


def has_cells(base: Any) -> bool:
    """Whether a base lies in cells."""
    return isinstance(base, faiss.IndexIVF)


def cell_ids(base: Any) -> Int64s:
    """The ids in a base in cells, cell by cell."""
    lists = base.invlists
    parts = [faiss.rev_swig_ptr(lists.get_ids(i), lists.list_size(i)).copy() for i in range(base.nlist)]
    return np.concatenate(parts).astype(np.int64)


def parameters(selector: Any, in_cells: bool, n_read: int) -> Any:
    """What a search is told: which ids to pass over, and how many cells to read."""
    in_some: Any = faiss.SearchParametersIVF  # their stubs do not know their arguments
    make: Any = faiss.SearchParameters
    if in_cells:
        return in_some(sel=selector, nprobe=n_read)
    return None if selector is None else make(sel=selector)


class HeldOut:
    """Enrolled vectors that are asked for their nearest other one: what is true, found while a base is filled."""

    def __init__(self, ids: Int64s, vectors: Float32s) -> None:
        chosen = slice(None, None, max(1, len(ids) // N_HELD_OUT))
        self.ids, self.vectors = ids[chosen], vectors[chosen]
        self.nearest = np.full(len(self.ids), NO_ID, np.int64)
        self._similarities = np.full(len(self.ids), -np.inf, np.float32)

    def compare(self, ids: Int64s, vectors: Float32s) -> None:
        """Hold them against more vectors."""
        for start in range(0, len(ids), 20_000):
            part = ids[start : start + 20_000]
            similarities = self.vectors @ vectors[start : start + 20_000].T  # (n_held_out, n_part)
            similarities[self.ids[:, None] == part] = -np.inf
            best = similarities.argmax(axis=1)
            found = similarities[np.arange(len(best)), best]
            nearer = found > self._similarities
            self.nearest[nearer], self._similarities[nearer] = part[best[nearer]], found[nearer]

    def recall(self, base: Any, n_read: int) -> float:
        """Which part finds its nearest other vector among what so many cells propose."""
        _, ids = base.search(self.vectors, N_PROPOSED + 1, params=parameters(None, True, n_read))
        return float((ids == self.nearest[:, None]).any(axis=1).mean())


def least_read(base: Any, asked: HeldOut) -> dict[str, Any]:
    """The fewest cells that find what is wanted, or the most that may be read; set in the base too."""
    most = max(1, int(base.nlist * MOST_READ))
    # Cells that hold fewer than are proposed would be read in vain.
    n_read = min(most, -(-4 * N_PROPOSED * base.nlist // max(1, base.ntotal)))
    recall = asked.recall(base, n_read)
    while recall < WANTED_RECALL and n_read < most:
        n_read = min(most, 2 * n_read)
        recall = asked.recall(base, n_read)
    base.nprobe = n_read
    return {"n_cells": int(base.nlist), "n_read": n_read, "recall": recall}
