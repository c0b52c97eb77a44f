"""Spaces -> where their points lie in every picture, computed in processes beside this one."""

import multiprocessing
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from types import TracebackType

from fewshot.errors import ProjectionError
from fewshot.projection.coordinates import N_DIMS, coordinates, trust
from fewshot.records import Float32s


@dataclass(frozen=True, slots=True)
class Picture:
    """Where the points of a space lie: `points` is (n_points, n_dims) float32, the rows those of the space.

    `trust` is the trustworthiness of the photos' places, taken of `n_trusted` photos; see `coordinates.trust`.
    """

    space: int  # which of the spaces, from 0
    method: str
    n_dims: int
    points: Float32s
    trust: float
    n_trusted: int


class Painters:
    """Computes pictures while this process does other work.

    UMAP has a process of its own: it compiles itself anew in every process, which takes ten seconds, and meanwhile
    t-SNE is done in the other. Leaving the block ends both at once.
    """

    def __init__(self, methods: Sequence[str], seed: int, n_neighbours: int | None) -> None:
        self.methods = tuple(methods)
        self._seed = seed
        self._n_neighbours = n_neighbours
        # Not forked: this process has threads (OpenVINO's, faiss's), and a fork would inherit their locks.
        context = multiprocessing.get_context("spawn")
        self._pools = {
            is_umap: ProcessPoolExecutor(1, mp_context=context) for is_umap in {method == "umap" for method in methods}
        }
        self._running: list[Future[Picture]] = []

    def __enter__(self) -> "Painters":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        if kind is not None:
            for process in multiprocessing.active_children():
                process.terminate()
        for pool in self._pools.values():
            pool.shutdown(wait=True, cancel_futures=True)

    def begin(self, space: int, vectors: Float32s, n_photos: int) -> None:
        """Start on every picture of a space, whose first `n_photos` rows are photos."""
        # Ctrl-C goes to all processes of a terminal. Those begun while it is blocked never see it: this one ends them.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for n_dims in sorted(N_DIMS, reverse=True):  # three dimensions take longest
                for method in self.methods:
                    job = (space, vectors, n_photos, method, n_dims, self._seed, self._n_neighbours)
                    self._running.append(self._pools[method == "umap"].submit(_paint, *job))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def pictures(self) -> Iterator[Picture]:
        """The pictures begun, as they are done.

        Raises:
            ProjectionError: a process was ended from outside, as happens when memory runs out.
        """
        try:
            for done in as_completed(self._running):
                yield done.result()
        except BrokenProcessPool as error:
            raise ProjectionError(
                "the process that computed a projection was ended from outside; memory may have run out.",
                hint="Draw fewer photos with --max-photos.",
            ) from error


def _paint(
    space: int, vectors: Float32s, n_photos: int, method: str, n_dims: int, seed: int, n_neighbours: int | None
) -> Picture:
    points = coordinates(vectors, method, n_dims, seed, n_neighbours)
    value, n = trust(vectors[:n_photos], points[:n_photos], seed, n_neighbours)
    return Picture(space, method, n_dims, points, value, n)
