"""Photos of many requests -> engine batches that they share: decoded in threads, bounded, answered in order."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import Any

from fewshot.decoding.cutting import cut_photo
from fewshot.decoding.guard import Guard
from fewshot.embedder import Embedder, Outcome
from fewshot.errors import BusyError, IndexChangedError, MixedEmbeddingsError
from fewshot.gallery import Gallery
from fewshot.memory import give_back_large_blocks, give_back_memory
from fewshot.records import LoadedPhoto, NamedBytes, Prediction, Question
from fewshot.service.settings import Settings, guard_of
from fewshot.service.threads import Threads

# The speed that Retry-After is reckoned with until the first batch has been measured.
FIRST_PHOTOS_PER_S = 20.0
# After so long without a photo, what is left of many small blocks is given back to the system: malloc would keep it.
IDLE_S = 2.0

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One request's photos on their way; its future gets predictions, or (outcomes, embedder) if `question` is None."""

    photos: list[NamedBytes | None]
    question: Question | None
    future: "Future[Any]" = field(default_factory=Future)
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    embedder: Embedder | None = None

    @property
    def is_done(self) -> bool:
        """Whether every photo has its outcome."""
        return len(self.outcomes) == len(self.photos)

    def fail(self, error: Exception) -> None:
        """Give the request an error, unless its client has left or it has one already."""
        _resolve(self.future, lambda: self.future.set_exception(error))

    def finish(self, result: object) -> None:
        """Give the request its answer, unless its client has left."""
        _resolve(self.future, lambda: self.future.set_result(result))


class Batcher:
    """Answers photos of concurrent requests in shared engine batches.

    A photo waits in at most one of three places: for a decoder thread, decoded for the engine, or in the engine. The
    engine takes what has gathered while it was busy, so batches grow with the load and a lone photo never waits for
    company. A request whose future is cancelled gives its places back at once and is passed over.

    Args:
        gallery: whose embedder and answers.
        settings: `max_waiting`, `max_batch`, `max_pixels`, `n_decoders`, `decode_cpu_s` and `guarded`.
        on_batch: told the number of photos of each engine batch.
        guard: decodes the photos, and stays open; None: one of its own, or none if `settings.guarded` says so.
    """

    def __init__(
        self, gallery: Gallery, settings: Settings, on_batch: Callable[[int], None], guard: Guard | None = None
    ) -> None:
        self._gallery = gallery
        self._settings = settings
        self._on_batch = on_batch
        self._decoders = Threads(settings.n_decoders, "decode")
        self._own_guard: Guard | None = None
        if guard is None and settings.guarded:
            guard = self._own_guard = guard_of(settings)
        self._cutter = guard.cut_photo if guard is not None and settings.guarded else cut_photo
        self._guard = guard
        self._changed = threading.Condition()
        self._ready: deque[tuple[Job, int, LoadedPhoto]] = deque()
        self._done: deque[Job] = deque()  # complete without the engine: every photo refused or known already
        self._n_waiting = 0
        self._closing = False
        self._photos_per_s = FIRST_PHOTOS_PER_S
        self._embedder: Embedder | None = None
        self._outdated: list[Embedder] = []  # no longer the index's; the engine's thread ends theirs
        self.failure: Exception | None = None
        self._worker = threading.Thread(target=self._work, name="engine-batches", daemon=True)

    @property
    def n_waiting(self) -> int:
        """Photos that have been accepted and not yet answered."""
        return self._n_waiting

    @property
    def n_decoders_died(self) -> int:
        """Guarded processes that died of a photo, or were ended."""
        return 0 if self._guard is None else self._guard.n_died

    @property
    def is_ready(self) -> bool:
        """Whether the engine is open."""
        return self._embedder is not None

    def start(self) -> None:
        """Open the engine, in the background, and begin to answer."""
        give_back_large_blocks()
        if self._own_guard is not None:
            self._own_guard.start()
        self._worker.start()

    def close(self, timeout_s: float) -> None:
        """Answer what was accepted, then stop; after `timeout_s`, without what is not answered."""
        until = time.monotonic() + timeout_s
        if self._decoders.close(timeout_s) and self._own_guard is not None:
            self._own_guard.close()
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._worker.join(max(0.0, until - time.monotonic()))
        if self._worker.is_alive():
            return  # a batch is in the engine
        for embedder in (*self._outdated, self._embedder):
            if embedder is not None:
                embedder.close()

    def submit(self, photos: Sequence[NamedBytes], question: Question | None) -> "Future[Any]":
        """Take photos in; the future's result is a list of predictions, or (outcomes, embedder) without a question.

        Raises:
            BusyError: too many photos are waiting.
        """
        job = Job(list(photos), question)
        with self._changed:
            if self._n_waiting + len(photos) > self._settings.max_waiting:
                raise BusyError(
                    f"{self._n_waiting} photos are waiting; with these {len(photos)} they would be more than "
                    f"{self._settings.max_waiting}.",
                    retry_after_s=self._retry_after_s(),
                )
            self._n_waiting += len(photos)
        job.future.add_done_callback(lambda _: self._give_back(job))
        for place in range(len(photos)):
            self._decoders.submit(self._decode, job, place)
        return job.future

    def forget(self, embedder: Embedder) -> None:
        """Take up the embedder that the index has got in place of this one, in the background; from any thread."""
        with self._changed:
            if self._embedder is embedder:  # and not what another has taken up already
                self._embedder = None
                self._outdated.append(embedder)
                self._changed.notify()

    def _retry_after_s(self) -> int:
        return max(1, min(60, round(self._n_waiting / self._photos_per_s)))

    def _give_back(self, job: Job) -> None:
        n_photos = len(job.photos)
        job.photos[:] = [None] * n_photos  # of a client that left, bytes that no decoder has taken yet
        with self._changed:
            self._n_waiting -= n_photos

    # ---- in the decoder threads

    def _decode(self, job: Job, place: int) -> None:
        photo = job.photos[place]
        if photo is None:
            return  # the client has left
        job.photos[place] = None  # its bytes are not held while it waits for the engine
        try:
            embedder = self._current_embedder()
            if job.embedder is None:
                job.embedder = embedder
            keep = job.question is None
            outcome = embedder.prepare(
                photo,
                is_known=self._gallery.is_enrolled if keep else None,
                keep=keep,
                most_pixels=self._settings.max_pixels,
                cutter=self._cutter,
            )
        except Exception as error:  # whatever it is, the request that waits must hear of it
            job.fail(error)
            return
        with self._changed:
            if isinstance(outcome, LoadedPhoto):
                self._ready.append((job, place, outcome))
            else:
                job.outcomes[place] = outcome
                if not job.is_done:
                    return
                self._done.append(job)
            self._changed.notify()

    def _current_embedder(self) -> Embedder:
        embedder = self._embedder
        if embedder is None:
            embedder = self._embedder = self._gallery.embedder()
        return embedder

    # ---- in the engine's thread

    def _work(self) -> None:
        self._open()
        while True:
            with self._changed:
                self._wait_for_work()
                if self._closing and not self._ready and not self._done:
                    return
                outdated, self._outdated = self._outdated, []
                done = list(self._done)
                self._done.clear()
                taken = self._take()
            if outdated:  # here alone: no batch is in their engines now
                for embedder in outdated:
                    embedder.close()
                self._open()
            self._answer(done)  # what needs no engine waits for no batch, and does not fail with one
            try:
                complete = self._embed(taken)
            except Exception as error:
                for job, _, _ in taken:
                    job.fail(error)
            else:
                self._answer(complete)

    def _open(self) -> None:
        try:
            self._current_embedder().open_for_many()
            self.failure = None
        except Exception as error:  # told by health, and by each request, which meets the same
            log.exception("the engine cannot be opened")
            self.failure = error

    def _wait_for_work(self) -> None:
        """Wait until there is something to do; with the lock held."""
        is_trimmed = False
        while not self._ready and not self._done and not self._outdated and not self._closing:
            is_heard = self._changed.wait(None if is_trimmed else IDLE_S)
            if not is_heard and not self._n_waiting:
                self._changed.release()
                try:
                    give_back_memory()
                finally:
                    self._changed.acquire()
                is_trimmed = True

    def _take(self) -> list[tuple[Job, int, LoadedPhoto]]:
        """The next photos whose clients still wait, in order of their coming, at most a batch."""
        taken: list[tuple[Job, int, LoadedPhoto]] = []
        while self._ready and len(taken) < self._settings.max_batch:
            item = self._ready.popleft()
            if not item[0].future.done():
                taken.append(item)
        return taken

    def _embed(self, taken: list[tuple[Job, int, LoadedPhoto]]) -> list[Job]:
        """The jobs that are complete with this batch."""
        if not taken:
            return []
        embedder = self._current_embedder()
        fitting = []
        for item in taken:
            if item[0].embedder is embedder:
                fitting.append(item)
            else:
                item[0].fail(IndexChangedError("the index got another backbone while the photos were read."))
        if not fitting:
            return []
        started = time.perf_counter()
        embedded = embedder.embed_prepared([photo for _, _, photo in fitting])
        self._on_batch(len(fitting))
        speed = len(fitting) / max(1e-6, time.perf_counter() - started)
        self._photos_per_s += 0.1 * (speed - self._photos_per_s)
        complete = []
        with self._changed:
            for (job, place, _), photo in zip(fitting, embedded, strict=True):
                job.outcomes[place] = photo
                if job.is_done:
                    complete.append(job)
        return complete

    def _answer(self, jobs: list[Job]) -> None:
        """Answer complete jobs; those that ask the same question, together."""
        same: dict[Question, list[Job]] = {}
        for job in jobs:
            if job.question is None:
                job.finish(([job.outcomes[i] for i in range(len(job.photos))], job.embedder))
            else:
                same.setdefault(job.question, []).append(job)
        for question, asking in same.items():
            asked = [[job.outcomes[i] for i in range(len(job.photos))] for job in asking]
            embedder = asking[0].embedder
            assert embedder is not None
            try:
                answers: list[list[Prediction]] = self._gallery.answer(asked, question, embedder)
                for job, found in zip(asking, answers, strict=True):
                    job.finish(found)
            except MixedEmbeddingsError as error:
                self.forget(embedder)
                for job in asking:
                    job.fail(IndexChangedError(error.message))
            except Exception as error:  # of this question alone, such as a pattern that no class fits
                for job in asking:
                    job.fail(error)


def _resolve(future: "Future[Any]", settle: Callable[[], None]) -> None:
    try:
        settle()
    except InvalidStateError:
        pass  # the client has left, or another of its photos has failed
