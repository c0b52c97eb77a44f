"""Vectors + integer ids -> nearest ids and similarities (the only door to faiss)."""

from pathlib import Path
from typing import Any

import faiss
import numpy as np

from fewshot.errors import CacheDamagedError, VectorError
from fewshot.records import Float32s, Int64s
from fewshot.sealed import verify, write_sealed

# Below this many vectors exact search is fast enough and needs no training; above, one byte a dimension is kept.
EXACT_LIMIT = 200_000
TRAINING_SAMPLE = 20_000
NO_ID = -1


class VectorIndex:
    """Unit vectors under integer ids, searched by inner product (their cosine).

    A base that never changes (it may be mapped from a file) carries what was there when it was built; vectors added
    later go to a small exact index beside it, removed ones are passed over. So opening a large index costs no copy,
    and a change costs what it changes.

    Args:
        dim: the vectors' length.
        exact_limit: above so many vectors a base is quantised to 8 bits a dimension (similarities then carry an
            error of about 0.001).
    """

    def __init__(self, dim: int, *, exact_limit: int = EXACT_LIMIT) -> None:
        self.dim = dim
        self.exact_limit = exact_limit
        self._base = _exact(dim)
        self._fresh = _exact(dim)
        self._base_ids: frozenset[int] = frozenset()
        self._gone: set[int] = set()
        self._fresh_ids: set[int] = set()

    def __len__(self) -> int:
        return int(self._base.ntotal) - len(self._gone) + len(self._fresh_ids)

    def __contains__(self, vector_id: int) -> bool:
        return vector_id in self._fresh_ids or (vector_id in self._base_id_set() and vector_id not in self._gone)

    @property
    def is_exact(self) -> bool:
        """Whether similarities are exact (to float32 rounding)."""
        return not isinstance(faiss.downcast_index(self._base.index), faiss.IndexScalarQuantizer)

    @property
    def n_pending(self) -> int:
        """How many changes stand beside the base: what a rebuild would fold in."""
        return len(self._fresh_ids) + len(self._gone)

    def build(self, ids: Int64s, vectors: Float32s, *, unit: bool = True) -> None:
        """Replace the whole content; with `unit` false by vectors of any length, and similarities are dot products.

        Raises:
            VectorError: see `add`.
        """
        ids, vectors = self._checked(ids, vectors, unit)
        self._base = _exact(self.dim) if len(ids) <= self.exact_limit else _quantised(self.dim, vectors)
        self._base.add_with_ids(vectors, ids)
        self._base_ids = frozenset(ids.tolist())
        self._fresh, self._fresh_ids, self._gone = _exact(self.dim), set(), set()

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
        for vector_id in ids.tolist():
            if vector_id in self:
                raise VectorError(f"id {vector_id} is in the index already.")
        if len(ids):
            self._fresh.add_with_ids(vectors, ids)
            self._fresh_ids.update(ids.tolist())

    def remove(self, ids: Int64s) -> None:
        """Remove vectors; ids that are not there are passed over."""
        fresh = [i for i in ids.tolist() if i in self._fresh_ids]
        if fresh:
            self._fresh.remove_ids(np.array(fresh, np.int64))
            self._fresh_ids.difference_update(fresh)
        self._gone.update(i for i in ids.tolist() if i in self._base_id_set())

    def search(self, queries: Float32s, k: int, only: Int64s | None = None) -> tuple[Float32s, Int64s]:
        """The k nearest vectors of each query.

        Args:
            queries: (n_query, dim) float32.
            k: how many; where the index holds fewer, the rest is padded.
            only: ids to search among; None: all.

        Returns:
            Similarities (n_query, k) float32, highest first, and ids (n_query, k) int64. Padding has id -1 and
            similarity -inf. Equal similarities come in the order of their ids.

        Raises:
            VectorError: a wrong shape, NaN or infinite numbers.
        """
        queries = self._checked_rows(queries)
        if k < 1:
            raise VectorError(f"k is {k}; wanted 1 or more.")
        found = [self._search_one(self._base, queries, k, self._gone, only)]
        if self._fresh_ids:
            found.append(self._search_one(self._fresh, queries, k, set(), only))
        similarities = np.concatenate([part[0] for part in found], axis=1)  # (n_query, at least k)
        ids = np.concatenate([part[1] for part in found], axis=1)
        similarities[ids == NO_ID] = -np.inf
        order = np.lexsort((ids, -similarities), axis=1)[:, :k]
        similarities = np.take_along_axis(similarities, order, axis=1)
        ids = np.take_along_axis(ids, order, axis=1)
        return similarities, ids

    def save(self, path: Path, facts: dict[str, Any]) -> None:
        """Write the content as a sealed file; changes beside the base must have been folded in by `build`.

        Raises:
            OSError, RuntimeError: the file cannot be written (faiss raises the latter); what stood there is untouched.
        """
        assert self.n_pending == 0, "fold pending changes in before saving"
        everything = {**facts, "dim": self.dim, "n_vectors": int(self._base.ntotal)}
        write_sealed(path, lambda target: faiss.write_index(self._base, str(target)), everything)

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
        facts = verify(path)
        for name, value in expected.items():
            if facts.get(name) != value:
                raise CacheDamagedError(f"{path} has {name} {facts.get(name)!r}; wanted {value!r}.")
        try:
            base = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise CacheDamagedError(f"{path} was written by a faiss whose files this one does not read.") from error
        index = cls(int(facts["dim"]))
        index._base = base
        index._base_ids = frozenset()  # read from the base when first asked for
        return index, facts

    def _base_id_set(self) -> frozenset[int]:
        if len(self._base_ids) != self._base.ntotal:
            self._base_ids = frozenset(faiss.vector_to_array(self._base.id_map).tolist())
        return self._base_ids

    def _search_one(
        self, index: Any, queries: Float32s, k: int, gone: set[int], only: Int64s | None
    ) -> tuple[Float32s, Int64s]:
        parameters = None
        make: Any = faiss.SearchParameters  # its stub does not know its arguments
        if only is not None:
            wanted = np.setdiff1d(only, np.fromiter(gone, np.int64, len(gone)))
            parameters = make(sel=faiss.IDSelectorBatch(wanted))
        elif gone:
            selector = faiss.IDSelectorNot(faiss.IDSelectorBatch(np.fromiter(gone, np.int64, len(gone))))
            parameters = make(sel=selector)
        n = int(index.ntotal)
        similarities = np.full((len(queries), k), -np.inf, np.float32)
        ids = np.full((len(queries), k), NO_ID, np.int64)
        # Of equal similarities faiss keeps those added first. One more is asked for than wanted, and more while the
        # last ones are equal, so that which ids are kept does not depend on the order in which they came.
        n_asked = min(n, k + 1)
        while n_asked:
            similarities, ids = index.search(queries, n_asked, params=parameters)
            tied = n_asked > k and ((similarities[:, k - 1] == similarities[:, -1]) & (ids[:, -1] != NO_ID)).any()
            if not tied or n_asked == n:
                break
            n_asked = min(n, 4 * n_asked)
        short = max(0, k - ids.shape[1])
        similarities = np.pad(similarities, ((0, 0), (0, short)), constant_values=-np.inf)
        return similarities, np.pad(ids, ((0, 0), (0, short)), constant_values=NO_ID)

    def _checked(self, ids: Int64s, vectors: Float32s, unit: bool = True) -> tuple[Int64s, Float32s]:
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
        if unit and len(norms) and not np.allclose(norms, 1.0, atol=1e-3):
            raise VectorError(f"a vector has length {norms[np.argmax(np.abs(norms - 1))]:.3f}; wanted 1.")
        return ids, vectors

    def _checked_rows(self, vectors: Float32s) -> Float32s:
        vectors = np.ascontiguousarray(vectors, np.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.dim:
            raise VectorError(f"vectors have shape {vectors.shape}; wanted (n, {self.dim}).")
        if not np.isfinite(vectors).all():
            raise VectorError("a vector holds NaN or infinite numbers.")
        return vectors


def _exact(dim: int) -> Any:
    return faiss.IndexIDMap2(faiss.IndexFlatIP(dim))


def _quantised(dim: int, vectors: Float32s) -> Any:
    inner = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
    step = max(1, len(vectors) // TRAINING_SAMPLE)
    inner.train(np.ascontiguousarray(vectors[::step]))
    return faiss.IndexIDMap2(inner)
