"""The nearest classes and enrolled photos of a vector, from faiss copies kept in step with the store."""

import logging
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from fewshot import search
from fewshot.classifier.metric import Metric
from fewshot.errors import CacheDamagedError, UsageError
from fewshot.records import NO_ID, Float32s, Int64s, Neighbour
from fewshot.store import OfContents, Reader

# Enrolled photos are kept exact up to so many numbers (64 MB, which a search goes through in 5 ms); beyond, a byte
# each: their similarities are computed from the store's vectors, so that nothing is lost but a place in memory.
# Prototypes decide answers; they stay exact up to `search.bases.EXACT_LIMIT`.
EXACT_NUMBERS = 16_000_000
# Changes carried along beside a cached file before it is written anew.
PENDING_FLOOR, PENDING_PART = 512, 0.05
# Copies of more vectors than this take so long to make that it is told.
TOLD_FROM = 100_000

# A million embeddings of 1,280 numbers are 1.3 GB in a copy (a byte a number) and 5 GB while it is made.
MOST_IN_MEMORY = 1_000_000

log = logging.getLogger(__name__)


def most_in_memory() -> int:
    """From how many enrolled photos on a database searches them itself: `$FEWSHOT_SUPPORTS_IN_MEMORY`."""
    given = os.environ.get("FEWSHOT_SUPPORTS_IN_MEMORY")
    if given is None:
        return MOST_IN_MEMORY
    if not given.isdecimal():
        raise UsageError(f"FEWSHOT_SUPPORTS_IN_MEMORY is {given!r}; wanted a number of photos, such as 1000000.")
    return int(given)


class Neighbours:
    """Lookups in one index. Every call is given the view of the store that its answer shall agree with.

    Several threads may ask at once; lookups in one copy are made one after the other, since a copy that is caught up
    with the store must not be searched meanwhile.

    Args:
        folder: where the cache files are; made when first written. They can be deleted at any time.
        most_in_memory: of more photos than this no copy is held where a database can search them itself.
        on_notice: told, in a sentence, when a copy is made that takes longer than anyone would wait unasked.
    """

    def __init__(
        self,
        folder: Path,
        *,
        most_in_memory: int = MOST_IN_MEMORY,
        on_notice: Callable[[str], None] | None = None,
    ) -> None:
        self._most_in_memory = most_in_memory
        self._copies = {
            made.kind: made(folder / f"{made.kind}s.faiss", on_notice) for made in (_PrototypeCopy, _SupportCopy)
        }
        self._moved: OfContents[search.VectorIndex] = OfContents()

    @property
    def cache_files(self) -> list[Path]:
        """Where the cache files are, whether they exist or not."""
        return [copy.path for copy in self._copies.values()]

    def catch_up(self, reader: Reader) -> None:
        """Bring the copies up to a view of the store now, so that the next question need not."""
        for kind, copy in self._copies.items():
            if kind == "prototype" or not reader.may_hold_more_supports_than(self._most_in_memory):
                with copy.at(reader):
                    pass

    def classes(
        self,
        reader: Reader,
        vectors: Float32s,
        n: int,
        within: Sequence[int] | None = None,
        metric: Metric | None = None,
    ) -> tuple[Float32s, Int64s]:
        """Each vector's nearest classes, a class being as near as its nearest prototype.

        Args:
            reader: the view to answer in.
            vectors: (n_vectors, dim) float32.
            n: how many classes.
            within: class ids to answer from; None: all.
            metric: what moved `vectors`, and moves the prototypes; the one of this generation. None: neither is moved.

        Returns:
            Cosines, or a metric's similarities, (n_vectors, n) float32, highest first, and class ids (n_vectors, n)
            int64; where the index holds fewer classes, -inf and -1.
        """
        only = None if within is None else reader.ids_of("prototype", within)
        with self._prototypes(reader, metric) as prototypes:
            n_classes = reader.n_classes() if within is None else len(within)
            n_prototypes = len(prototypes) if only is None else len(only)
            n_asked = n + min(n, max(0, n_prototypes - n_classes))
            while True:
                similarities, ids = prototypes.search(vectors, n_asked, only)
                found, places = np.unique(ids, return_inverse=True)
                owner = {NO_ID: NO_ID, **reader.prototype_classes(found[found != NO_ID].tolist())}
                class_ids = np.array([owner[i] for i in found.tolist()], np.int64)[places].reshape(ids.shape)
                similarities, class_ids, n_least = _nearest_of_each_class(similarities, class_ids, n)
                # Classes of several prototypes may have taken the places of others.
                if n_least >= n or n_asked >= n_prototypes:
                    return similarities if metric is not None else np.minimum(similarities, 1.0), class_ids
                n_asked *= 2

    @contextmanager
    def _prototypes(self, reader: Reader, metric: Metric | None) -> "Iterator[search.VectorIndex]":
        if metric is not None:
            # Never changed, so that several may search it.
            yield self._moved.of(reader, lambda: _moved_prototypes(metric, reader))
            return
        with self._copies["prototype"].at(reader) as prototypes:
            yield prototypes

    def other_classes(self, reader: Reader, vectors: Float32s, class_id: int, n: int) -> list[list[tuple[int, float]]]:
        """Each vector's nearest classes but its own: (class id, cosine), nearest first, at most n."""
        n_others = min(n, reader.n_classes() - 1)
        if n_others < 1 or not len(vectors):
            return [[] for _ in vectors]
        similarities, class_ids = self.classes(reader, vectors, n_others + 1)
        return [
            [(int(c), float(s)) for c, s in zip(row_ids, row, strict=True) if c not in (class_id, NO_ID)][:n_others]
            for row_ids, row in zip(class_ids, similarities, strict=True)
        ]

    def supports(
        self, reader: Reader, vectors: Float32s, k: int, within: Sequence[int] | None = None
    ) -> list[tuple[Neighbour, ...]]:
        """Each vector's k nearest enrolled photos, nearest first; `within` are class ids to answer from, None all."""
        if k < 1:
            return [()] * len(vectors)
        similarities, ids = self._nearest_supports(reader, vectors, k, within)
        records = reader.supports(ids[ids != NO_ID].tolist())
        return [
            tuple(
                Neighbour(int(i), records[int(i)].label, min(1.0, float(s)), records[int(i)].file)
                for s, i in zip(row, row_ids, strict=True)
                if i != NO_ID
            )
            for row, row_ids in zip(similarities, ids, strict=True)
        ]

    def _nearest_supports(
        self, reader: Reader, vectors: Float32s, k: int, within: Sequence[int] | None
    ) -> tuple[Float32s, Int64s]:
        """Cosines and support ids, (n_vectors, k) both."""
        if reader.may_hold_more_supports_than(self._most_in_memory):
            found = reader.nearest_supports(vectors, k, within)
            if found is not None:
                return found
        only = None if within is None else reader.ids_of("support", within)
        with self._copies["support"].at(reader) as supports:
            return supports.search(vectors, k, only, reader.support_vectors)


def _nearest_of_each_class(similarities: Float32s, class_ids: Int64s, n: int) -> tuple[Float32s, Int64s, int]:
    """Keep each row's first place of every class, at most n; also the least number of classes in a row."""
    order = np.argsort(class_ids, axis=1, kind="stable")  # equal classes together, the nearest first
    ordered = np.take_along_axis(class_ids, order, axis=1)
    again = np.zeros(class_ids.shape, bool)
    np.put_along_axis(again, order[:, 1:], ordered[:, 1:] == ordered[:, :-1], axis=1)
    again |= class_ids == NO_ID
    kept = np.argsort(again, axis=1, kind="stable")[:, :n]  # what is no repetition first, in order of similarity
    dropped = np.take_along_axis(again, kept, axis=1)
    similarities = np.where(dropped, -np.inf, np.take_along_axis(similarities, kept, axis=1)).astype(np.float32)
    n_least = int((~again).sum(axis=1).min()) if len(again) else n
    width = ((0, 0), (0, max(0, n - similarities.shape[1])))
    class_ids = np.where(dropped, NO_ID, np.take_along_axis(class_ids, kept, axis=1))
    return (
        np.pad(similarities, width, constant_values=-np.inf),
        np.pad(class_ids, width, constant_values=NO_ID),
        n_least,
    )


def _moved_prototypes(metric: Metric, reader: Reader) -> "search.VectorIndex":
    """All prototypes in an index's own metric, in memory."""
    ids, vectors = reader.changed_vectors("prototype", since=-1)
    index = search.VectorIndex(vectors.shape[1], unit=False)
    index.build(ids, metric.placed(vectors))
    return index


class _VectorCopy:
    """The faiss copy of some of a store's vectors: a file, brought up to the generation asked for."""

    kind: str
    shown_as: str

    def __init__(self, path: Path, on_notice: Callable[[str], None] | None = None) -> None:
        self.path = path
        self._on_notice = on_notice
        self._index: search.VectorIndex | None = None
        self._generation = -1
        self._token: str | None = None
        self._older: tuple[tuple[int, str | None], search.VectorIndex] | None = None
        self._lock = threading.Lock()

    @contextmanager
    def at(self, reader: Reader) -> "Iterator[search.VectorIndex]":
        """The copy at the generation of `reader`, for as long as the block lasts; other threads wait."""
        with self._lock:
            yield self._synced(reader)

    def _synced(self, reader: Reader) -> "search.VectorIndex":
        """The copy at the generation of `reader`: taken as it is, caught up, or built from the store."""
        about = reader.about()
        if self._index is None:
            self._open(about.fingerprint)
        elif about.generation < self._generation:
            return self._beside(reader)
        index = self._index
        if index is None or index.dim != about.dim or about.generation < self._generation:
            return self._rebuilt(reader)
        if reader.token(self._generation) != self._token:
            return self._rebuilt(reader)
        if self._generation < about.generation:
            n_pending = index.n_pending + reader.n_rows(self.kind, since=self._generation)
            if n_pending > PENDING_FLOOR + PENDING_PART * len(index):
                return self._rebuilt(reader)
            changed, vectors = reader.changed_vectors(self.kind, self._generation)
            index.remove(np.concatenate([reader.removed_ids(self.kind, self._generation), changed]))
            index.add(changed, vectors)
            self._generation, self._token = reader.content()
            self._older = None  # who still asks in a view before that is soon done
        return index

    def _open(self, fingerprint: str | None) -> None:
        if not self.path.exists():
            return
        try:
            index, facts = search.VectorIndex.open(self.path, {"kind": self.kind, "fingerprint": fingerprint})
        except CacheDamagedError as error:
            log.info("cache passed over and rebuilt: %s", error.message)
            return
        self._index, self._generation, self._token = index, int(facts["generation"]), facts["token"]

    def _beside(self, reader: Reader) -> "search.VectorIndex":
        """What a view before the copy's generation holds, for threads that still ask in it: the copy stays as it is."""
        content = reader.content()
        if self._older is None or self._older[0] != content:
            self._older = None  # two of them need not fit in memory
            self._older = content, self._built(reader)
        return self._older[1]

    def _rebuilt(self, reader: Reader) -> "search.VectorIndex":
        """The copy built anew, and its file written."""
        index = self._built(reader)
        generation, token = reader.content()
        facts = {
            "kind": self.kind,
            "fingerprint": reader.about().fingerprint,
            "generation": generation,
            "token": token,
        }
        try:
            index.save(self.path, facts)
            index, _ = search.VectorIndex.open(self.path, facts)  # mapped: memory that the system may take back
        except CacheDamagedError:
            pass  # another process has just replaced it by its own; this one's answers come from what it built
        except (OSError, RuntimeError) as error:  # faiss reports a full disk as RuntimeError
            log.warning(
                "the search cache %s cannot be written (%s); answers are right, but start slower.", self.path, error
            )
        self._index, self._generation, self._token = index, generation, token
        return index

    def _built(self, reader: Reader) -> "search.VectorIndex":
        """All vectors of a view."""
        dim = reader.about().dim or 0
        index = self._empty(dim)
        n = reader.n_rows(self.kind)
        if n > TOLD_FROM and self._on_notice is not None:
            self._on_notice(f"making the search file of {n:,} {self.shown_as}; for a million that takes minutes.")
        sample = np.zeros(0, np.int64), np.zeros((0, dim), np.float32)
        if n_wanted := index.n_training(n):
            parts = list(reader.vector_parts(self.kind, n_wanted))
            sample = np.concatenate([ids for ids, _ in parts]), np.concatenate([vectors for _, vectors in parts])
        index.build_from(n, sample, lambda: reader.vector_parts(self.kind), lambda: self._centres(reader))
        return index

    def _empty(self, dim: int) -> "search.VectorIndex":
        raise NotImplementedError

    def _centres(self, _reader: Reader) -> "search.Centres | None":
        """What the vectors are known to lie around, if anything."""
        return None


class _PrototypeCopy(_VectorCopy):
    kind, shown_as = "prototype", "prototypes"

    def _empty(self, dim: int) -> "search.VectorIndex":
        return search.VectorIndex(dim, cells_limit=None)


class _SupportCopy(_VectorCopy):
    kind, shown_as = "support", "photos"

    def _empty(self, dim: int) -> "search.VectorIndex":
        return search.VectorIndex(dim, exact_limit=EXACT_NUMBERS // max(1, dim))

    def _centres(self, reader: Reader) -> "search.Centres | None":
        """All prototypes, and for supports the row of their class's first one."""
        ids, vectors = reader.changed_vectors("prototype", since=-1)
        owned_ids, classes = reader.owners("prototype")
        support_ids, support_classes = reader.owners("support")
        if not len(ids) or not np.array_equal(ids, owned_ids):
            return None
        order = np.argsort(classes, kind="stable")
        rows = order[np.minimum(np.searchsorted(classes[order], support_classes), len(order) - 1)]
        return vectors, lambda ids: rows[np.searchsorted(support_ids, ids)]
