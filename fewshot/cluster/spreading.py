"""Photos -> outcomes in order, decoded and embedded by workers on a Ray cluster, each content once."""

import logging
import os
import pickle
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from fewshot import images
from fewshot.cluster.connection import connect
from fewshot.cluster.workers import Failure, Opener, Order, Worker, open_as, photo_table, read_photos
from fewshot.embedder import Embedder, EmbedderChoice, Outcome, refused
from fewshot.engines import n_threads
from fewshot.errors import ClusterError, ImageError
from fewshot.records import NamedBytes, Refused, SkippedPhoto

BLOCK = 32  # photos that go to a worker at once
MOST_BLOCKS = 20_000  # beyond, blocks grow: each costs the command's own process a little
START_TIMEOUT_S = 120  # how long a cluster may have no core for a first worker
PROGRESS_TIMEOUT_S = 600  # how long no block may be done before the cluster is given up

Photo = Path | NamedBytes


class Cluster:
    """A Ray cluster as something that embeds photos, in place of this process.

    The machine on which the command runs reads the photos and sends them; the others need the program and the
    backbone's weights, and no shared folder. A machine that is lost costs time, not photos: what it had in hand is
    given to others.

    Args:
        address: HOST:PORT of the head, `auto` or `local`.
        engine: what workers run the backbone with.
        opener: how a worker comes by its embedder, for embedders that do not come from a backbone's name.
        n_workers: at most so many; by default one a core of the cluster.

    Raises:
        MissingExtraError, UsageError, ClusterUnreachableError: see `connect`.
    """

    def __init__(
        self, address: str, *, engine: str = "auto", opener: Opener = open_as, n_workers: int | None = None
    ) -> None:
        self._engine, self._opener, self._n_workers = engine, opener, n_workers
        self._running: weakref.WeakSet[Generator[Outcome, None, None]] = weakref.WeakSet()
        self._ray = connect(address)

    def close(self) -> None:
        """Leave the cluster, with what is still under way; one that was started for this process ends."""
        for outcomes in list(self._running):
            outcomes.close()
        self._ray.shutdown()

    def __enter__(self) -> "Cluster":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def n_cores(self) -> int:
        """How many cores the cluster has now."""
        return int(self._ray.cluster_resources().get("CPU", 0))

    def embed_photos(
        self,
        embedder: Embedder,
        photos: Iterable[Photo],
        *,
        is_known: Callable[[str], bool] | None = None,
        keep: bool = False,
        keep_metadata: bool = False,
    ) -> Iterator[Outcome]:
        """What `Embedder.embed_photos` gives, made by the cluster: outcomes in the order of `photos`.

        Args:
            embedder: the one whose embeddings are wanted; the workers open its like.
            photos: files on this machine, or bytes with names.
            is_known: asked with each content hash before anything is sent; True skips the photo. Photos of the same
                bytes are then embedded once.
            keep, keep_metadata: see `Embedder.prepare`.

        Raises:
            ClusterError: the cluster cannot embed; what it gave before is whole.
            UsageError: `$FEWSHOT_MAX_MEGAPIXELS`, which holds for the workers too, is no positive number.
        """
        choice = EmbedderChoice(None, embedder.precision, self._engine)
        images.max_pixels()  # what is wrong with the variable is said here, not by each worker of each photo
        megapixels = os.environ.get(images.MEGAPIXELS_VARIABLE) or None
        order = Order(self._opener, choice, embedder.source, embedder.fingerprint, keep, keep_metadata, megapixels)
        outcomes = self._outcomes(order, list(photos), is_known)
        self._running.add(outcomes)
        return outcomes

    def _outcomes(
        self, order: Order, every: list[Photo], is_known: Callable[[str], bool] | None
    ) -> Generator[Outcome, None, None]:
        settled: dict[int, Outcome] = {}
        first_of: dict[int, int] = {}
        if is_known is not None:
            settled, first_of = _sift(every, is_known)
        todo = [(i, photo) for i, photo in enumerate(every) if i not in settled and i not in first_of]
        wanted_again = set(first_of.values())
        made: dict[int, Outcome] = {}
        arriving = self._made(order, todo) if todo else iter(())
        for i, photo in enumerate(every):
            if i in settled:
                yield settled.pop(i)
                continue
            source = first_of.get(i, i)
            while source not in made:
                arrived = next(arriving, None)
                if arrived is None:
                    raise ClusterError(f"the cluster lost {_name(photo)}, and with it the photos after it.")
                made[arrived[0]] = arrived[1]
            outcome = made[source] if source in wanted_again else made.pop(source)
            yield outcome if source == i else _of_copy(outcome, _name(photo))

    def _made(self, order: Order, todo: Sequence[tuple[int, Photo]]) -> Iterator[tuple[int, Outcome]]:
        """The outcomes of photos with their positions, in order."""
        try:
            for table in self._dataset(todo, order).iter_batches(
                batch_size=None, batch_format="pyarrow", prefetch_batches=0
            ):
                rows = zip(table.column("position").to_pylist(), table.column("outcome").to_pylist(), strict=True)
                for position, content in rows:
                    # Pickled by our own workers, whom the cluster trusts with code anyway.
                    outcome = pickle.loads(content)  # noqa: S301
                    if isinstance(outcome, Failure):
                        raise ClusterError(
                            f"machine {outcome.machine} of the cluster cannot embed: {outcome.message}",
                            hint=outcome.hint,
                        )
                    yield position, outcome
        except self._failures() as error:
            raise ClusterError(f"the cluster gave up: {_last_line(error)}") from error

    def _failures(self) -> tuple[type[Exception], ...]:
        """What ray raises when it cannot go on."""
        from ray.data import exceptions

        return (self._ray.exceptions.RayError, exceptions.ExecutionTimeoutError, exceptions.SystemException)

    def _dataset(self, todo: Sequence[tuple[int, Photo]], order: Order) -> Any:
        """Read here, embed anywhere: a stream that runs as it is consumed."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # ray warns of its own old settings when it makes its defaults
            from ray import data

            context = data.DataContext.get_current()
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.execution_options.preserve_order = True
        context.wait_for_min_actors_s = START_TIMEOUT_S
        # A photo at which the decoder itself crashes would be tried for ever: workers are started again without end.
        context.execution_no_progress_timeout_s = PROGRESS_TIMEOUT_S
        size = max(BLOCK, -(-len(todo) // MOST_BLOCKS))
        blocks = [photo_table(list(todo[start : start + size])) for start in range(0, len(todo), size)]
        n_workers = min(self._n_workers or self.n_cores(), len(blocks))
        if n_workers < 1:
            raise ClusterError("the cluster has no core to work on.", hint="Let a machine join it: `ray start`.")
        # A machine may be lost while its workers start, too.
        context.max_consecutive_actor_init_deaths = n_workers
        return (
            data.from_arrow(blocks)
            # Reading takes next to no computing: it is no reason to keep a core from a worker.
            .map_batches(
                read_photos,
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=0,
                compute=data.TaskPoolStrategy(size=min(2, len(blocks))),  # ray warns of more than there are
                label_selector={"ray.io/node-id": self._ray.get_runtime_context().get_node_id()},
            )
            .map_batches(
                Worker,
                fn_constructor_args=(order,),
                batch_size=None,
                batch_format="pyarrow",
                num_cpus=1,
                # Workers without work end, so that those of a lost machine can start again in their place.
                compute=data.ActorPoolStrategy(
                    min_size=1, max_size=n_workers, initial_size=n_workers, max_tasks_in_flight_per_actor=2
                ),
            )
        )


def _sift(photos: Sequence[Photo], is_known: Callable[[str], bool]) -> tuple[dict[int, Outcome], dict[int, int]]:
    """The outcomes of photos that need no embedding, and of copies the position of the first of their kind."""

    def looked_at(photo: Photo) -> str | Refused:
        try:
            data = photo.data if isinstance(photo, NamedBytes) else images.read_bytes(photo)
        except ImageError as error:
            return refused(error, _name(photo))
        return images.content_hash(data)

    settled: dict[int, Outcome] = {}
    first: dict[str, int] = {}
    first_of: dict[int, int] = {}
    with ThreadPoolExecutor(n_threads(), "hash") as pool:
        for i, found in enumerate(pool.map(looked_at, photos)):
            if isinstance(found, Refused):
                settled[i] = found
            elif is_known(found):
                settled[i] = SkippedPhoto(_name(photos[i]), found)
            elif found in first:
                first_of[i] = first[found]
            else:
                first[found] = i
    return settled, first_of


def _of_copy(outcome: Outcome, file: str) -> Outcome:
    """What became of a photo, told of another of the same bytes."""
    if not isinstance(outcome, Refused):
        return replace(outcome, file=file)
    first, name = Path(outcome.file).name, Path(file).name
    message = outcome.message
    return Refused(file, outcome.code, name + message.removeprefix(first) if message.startswith(first) else message)


def _name(photo: Photo) -> str:
    return photo.file if isinstance(photo, NamedBytes) else str(photo)


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]
