"""Threads that a service gives work to, and that its end does not have to wait for."""

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, ParamSpec, TypeVar

Words = ParamSpec("Words")
Result = TypeVar("Result")

log = logging.getLogger(__name__)


class Threads(Executor):
    """A few threads that do what is submitted, the first first.

    Other than those of a `ThreadPoolExecutor`, which Python itself waits for before it exits, they hold up nobody:
    `close` waits for as long as it is told to, and what is under way then ends with the process.

    Args:
        n_threads: how many; started with the first work.
        name: of the threads.
    """

    def __init__(self, n_threads: int, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True) for number in range(n_threads)
        ]
        self._lock = threading.Lock()
        self._is_started = self._is_closed = False
        self._n_unfinished = 0

    def submit(
        self, function: Callable[Words, Result], /, *arguments: Words.args, **options: Words.kwargs
    ) -> "Future[Result]":
        """Have a function called; its result, or what it raised.

        Raises:
            RuntimeError: the threads were closed.
        """
        future: Future[Result] = Future()
        with self._lock:
            if self._is_closed:
                raise RuntimeError(f"the threads {self._name!r} are closed")
            if not self._is_started:
                for thread in self._threads:
                    thread.start()
                self._is_started = True
            self._n_unfinished += 1
            self._jobs.put((future, lambda: function(*arguments, **options)))
        return future

    def close(self, timeout_s: float, *, drop: bool = False) -> bool:
        """Take no more work, and end when what was taken is done.

        Args:
            timeout_s: how long to wait for that.
            drop: cancel what no thread has begun.

        Returns:
            Whether it is done.
        """
        until = time.monotonic() + timeout_s
        with self._lock:
            self._is_closed = True
            if not self._is_started:
                return True
        while drop:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[0].cancel()
                self._count_finished()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        is_done = self._n_unfinished == 0
        if not is_done:
            log.warning("the threads %r are still at work, and end with the process", self._name)
        return is_done

    def _count_finished(self) -> None:
        with self._lock:
            self._n_unfinished -= 1

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            future, call = job
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except BaseException as error:
                    future.set_exception(error)
                    del error
                else:
                    future.set_result(result)
                    del result
            self._count_finished()
            del job, future, call  # what they hold is not kept while nothing is to be done
