"""What the routes share: the opened index, its batches, and how a request waits for work done in threads."""

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from fewshot.decoding.guard import Guard
from fewshot.embedder import Embedder, Outcome
from fewshot.errors import BusyError, IndexChangedError, MixedEmbeddingsError
from fewshot.gallery import Gallery
from fewshot.records import NamedBytes, Prediction, Question
from fewshot.service.batching import Batcher
from fewshot.service.metrics import Metrics
from fewshot.service.settings import Settings
from fewshot.service.threads import Threads

Result = TypeVar("Result")
N_READERS = 4


class Work:
    """An index at work: questions in shared batches, reads in a few threads, changes one after the other.

    Args:
        gallery: the opened index; the caller closes it.
        settings: the limits.
        guard: see `Batcher`.
    """

    def __init__(self, gallery: Gallery, settings: Settings, guard: Guard | None = None) -> None:
        self.gallery = gallery
        self.settings = settings
        self.metrics = Metrics(gallery.size, lambda: self.batcher.n_decoders_died)
        self.batcher = Batcher(gallery, settings, self.metrics.batch_photos.observe, guard)
        self.metrics.waiting.set_function(lambda: self.batcher.n_waiting)
        self._readers = Threads(N_READERS, "read")
        self._writer = Threads(1, "write")  # SQLite has one writer; more would only wait in threads
        self._n_writes = 0
        # When the index was last looked at for health: classes, photos and generation, and whether it could be read.
        self.last_seen = (0, 0, 0)
        self.is_reached = False

    def start(self) -> None:
        """Begin to answer."""
        self.batcher.start()

    def close(self, timeout_s: float) -> None:
        """Finish what was accepted, then stop; after `timeout_s`, without what is not finished."""
        until = time.monotonic() + timeout_s
        self.batcher.close(timeout_s)
        self._writer.close(until - time.monotonic())
        self._readers.close(until - time.monotonic())

    async def ask(self, request: Request, photos: Sequence[NamedBytes], question: Question) -> list[Prediction]:
        """Answer a request's photos.

        Raises:
            BusyError: too many photos are waiting.
            ClientDisconnect: the client left; its places are free again.
        """
        found: list[Prediction] = await while_connected(request, self.batcher.submit(photos, question))
        self.metrics.count_answers(found)
        return found

    async def embed(self, request: Request, photos: Sequence[NamedBytes]) -> tuple[list[Outcome], Embedder]:
        """Embed a request's photos for enrolling; errors as of `ask`."""
        found: tuple[list[Outcome], Embedder] = await while_connected(request, self.batcher.submit(photos, None))
        return found

    async def read(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run something that reads the index, in a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, function, *arguments)

    async def read_json(self, function: Callable[[], dict[str, Any]]) -> Response:
        """What a function gives, as a response: read, and made to JSON as well, in a thread.

        An answer may hold tens of thousands of photos. The loop that all clients share does nothing for it but send.
        """
        return Response(await self.read(_json_of, function), media_type="application/json")

    async def write(self, function: Callable[..., Result], *arguments: Any) -> Result:
        """Run something that changes the index, in the one thread that does; done even if the client leaves.

        Raises:
            BusyError: too many changes are waiting.
        """
        if self._n_writes >= self.settings.max_writes:
            raise BusyError(f"{self._n_writes} changes are waiting for the index.", retry_after_s=5)
        self._n_writes += 1
        change = asyncio.wrap_future(self._writer.submit(function, *arguments))
        change.add_done_callback(self._written)
        return await asyncio.shield(change)

    async def enroll(self, change: Callable[[], Result], made_by: Embedder) -> Result:
        """As `write`, for a change that brings in what an embedder made.

        Raises:
            BusyError: too many changes are waiting.
            IndexChangedError: the index has got another embedder meanwhile, which is taken up now.
        """

        def checked() -> Result:
            try:
                return change()
            except MixedEmbeddingsError as error:
                self.batcher.forget(made_by)
                raise IndexChangedError(error.message) from error

        return await self.write(checked)

    def _written(self, _change: object) -> None:
        self._n_writes -= 1


def _json_of(function: Callable[[], dict[str, Any]]) -> bytes:
    return b"{" + b",".join(_dumped(name) + b":" + _member(value) for name, value in function().items()) + b"}"


def _member(value: Any) -> bytes:
    # One by one: the other threads, and with them the loop, stand still while Python's encoder writes a value.
    return b"[" + b",".join(map(_dumped, value)) + b"]" if isinstance(value, list) else _dumped(value)


def _dumped(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()


async def while_connected(request: Request, work: "Future[Any]") -> Any:
    """The result of work in threads; it is cancelled if the client leaves first.

    Raises:
        ClientDisconnect: it left.
    """
    answer = asyncio.wrap_future(work)
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({answer, left}, return_when=asyncio.FIRST_COMPLETED)
        if not answer.done():
            raise ClientDisconnect
        return answer.result()
    finally:
        answer.cancel()
        left.cancel()


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
