"""Processes of their own that decode strangers' photos under limits, and are replaced when one dies of it."""

import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np

from fewshot import errors, images
from fewshot.decoding.cutting import Cut, CutPhoto
from fewshot.errors import GuardError, ImageError, ImageStoppedError

Result = TypeVar("Result")

# What decoding takes at most: a float picture needs so much a pixel on its way to RGB; the file itself lies there too.
BYTES_A_PIXEL = 24
BYTES_BESIDE = 256_000_000
CPU_S = 20.0
DEADLINE_S = 60.0
START_S = 60.0
STARTED_AHEAD = 2
KEPT_AREA_BYTES = 4_000_000
MAX_LINE_BYTES = 1_000_000
MAX_THUMBNAIL_BYTES = 16_000_000
# What a guarded process is told of its surroundings: nothing that names an index, a token or a user.
ENVIRONMENT = ("PATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "TMPDIR", "FEWSHOT_MAX_MEGAPIXELS")
PROGRAM = """
import json, signal, sys
signal.signal(signal.SIGINT, signal.SIG_IGN)
path, *numbers = json.loads(sys.argv[1])
sys.path[:] = path
from fewshot.decoding.worker import main
main(*numbers)
"""
_KNOWN = {
    kind.code: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, ImageError) and kind is not ImageError
}

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class GuardLimits:
    """What one photo may cost.

    Attributes:
        memory_bytes: beyond the about 40 MB that a process holds at rest; kept by the system where it is Linux.
        cpu_s: processor seconds.
        deadline_s: seconds by the clock, so that a process that only waits ends too.
    """

    memory_bytes: int
    cpu_s: float = CPU_S
    deadline_s: float = DEADLINE_S

    @classmethod
    def for_pixels(cls, most_pixels: int) -> "GuardLimits":
        """Limits under which every sound photo of so many pixels is decoded.

        >>> GuardLimits.for_pixels(50_000_000).memory_bytes
        1456000000
        """
        return cls(BYTES_BESIDE + BYTES_A_PIXEL * most_pixels)


class Guard:
    """Decodes photos in a few processes; whatever a photo does there, it is refused and the next one is decoded.

    Its methods may be called from as many threads as one likes; `n_workers` of them are served at once.

    Args:
        n_workers: processes.
        limits: what one photo may cost.
    """

    def __init__(self, n_workers: int, limits: GuardLimits) -> None:
        self.limits = limits
        self._n_workers = n_workers
        # Those that are free; None: one that is yet to be started.
        self._free: queue.LifoQueue[_Worker | None] = queue.LifoQueue()
        for _ in range(n_workers):
            self._free.put(None)
        self.n_died = 0

    def start(self) -> None:
        """Start the first `STARTED_AHEAD` processes now, so that the first photos need not wait for them.

        The others start when so many photos are decoded at once; who was used last is used first.

        Raises:
            GuardError: they cannot be started.
        """
        taken = [self._free.get() for _ in range(min(STARTED_AHEAD, self._n_workers))]
        try:
            for place, worker in enumerate(taken):
                taken[place] = worker or _Worker(self.limits)
        finally:
            for worker in taken:
                self._free.put(worker)

    def close(self) -> None:
        """End the processes, each after its photo."""
        taken = [self._free.get() for _ in range(self._n_workers)]
        for worker in taken:
            if worker is not None:
                worker.end()
            self._free.put(None)

    def cut_photo(self, data: bytes, name: str, cut: Cut) -> CutPhoto:
        """As `cutting.cut_photo`, in a guarded process.

        Raises:
            ImageError: the photo cannot be used; `ImageStoppedError`, if it overstepped the limits.
            GuardError: the process cannot be started, or failed at something that is not the photo's fault.
        """
        return self._with_worker(name, lambda worker: worker.cut_photo(data, name, cut))

    def gps_tags(self, data: bytes) -> dict[int, Any]:
        """As `images.gps_tags`, in a guarded process; empty if the photo oversteps the limits there.

        Raises:
            GuardError: as of `cut_photo`.
        """
        try:
            return self._with_worker("", lambda worker: worker.gps_tags(data))
        except ImageStoppedError:
            return {}

    def _with_worker(self, name: str, ask: Callable[["_Worker"], Result]) -> Result:
        for attempt in (1, 2):
            worker = self._free.get()
            try:
                worker = worker or _Worker(self.limits)
                return ask(worker)
            except _DiedError as died:
                assert worker is not None
                self.n_died += 1
                cause = worker.cause_of_death(died)
                worker = None
                if cause.from_outside and attempt == 1:
                    continue  # somebody ended the process; the photo may be sound
                log.warning("a guarded process was replaced: %s %s", ascii(name), cause.said)
                raise ImageStoppedError(f"{name} {cause.said}") from died
            except GuardError:
                if worker is not None and not worker.is_ready:
                    worker.end(at_once=True)
                    worker = None
                raise
            finally:
                self._give_back(worker)
        raise AssertionError("the second attempt returns or raises")

    def _give_back(self, worker: "_Worker | None") -> None:
        """Put back a process, or one that is starting, for the next photo; None if that fails now, to be tried then."""
        try:
            worker = worker or _Worker(self.limits)
        except GuardError:
            pass
        finally:
            self._free.put(worker)  # whatever happened: a place that is not put back is waited for for ever


class _DiedError(Exception):
    """A process did not answer: it died, it took too long, or what it said is no answer."""


@dataclass(frozen=True, slots=True)
class _Cause:
    said: str
    from_outside: bool = False


class _Worker:
    """One guarded process, used by one thread at a time."""

    def __init__(self, limits: GuardLimits) -> None:
        self._limits = limits
        self.is_ready = False
        self._n_area = 0
        with ExitStack() as opened:  # what is open when something fails is closed
            try:
                self._errors = opened.enter_context(tempfile.TemporaryFile())  # what it says if it cannot start
                self._area = _memory_file()
                opened.callback(os.close, self._area)
                ours, theirs = socket.socketpair()
                opened.callback(ours.close)
                with theirs:
                    numbers = [theirs.fileno(), self._area, limits.memory_bytes, limits.cpu_s]
                    self._process = subprocess.Popen(  # noqa: S603 - this program's own interpreter
                        [sys.executable, "-E", "-s", "-c", PROGRAM, json.dumps([sys.path, *numbers])],
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.DEVNULL,
                        stderr=self._errors,
                        pass_fds=(theirs.fileno(), self._area),
                        env={name: os.environ[name] for name in ENVIRONMENT if name in os.environ},
                        start_new_session=True,  # Ctrl-C is for the service, which finishes what it accepted
                    )
            except OSError as error:
                raise GuardError(
                    f"no process to decode photos in can be started: {error.strerror or error}.",
                    hint="Let the service have more processes, open files and memory, or give it fewer cores.",
                ) from error
            opened.pop_all()
        self._talk = ours
        self._lines = ours.makefile("rb")

    def cut_photo(self, data: bytes, name: str, cut: Cut) -> CutPhoto:
        """See `Guard.cut_photo`."""
        reply = self._ask(data, {"name": name, "cut": _told(cut)})
        try:
            side = cut.image_size_px
            n_pixels, n_thumbnail = side * side * 3, int(reply["n_thumbnail"])
            width, height = map(int, reply["size"])
            dhash = bytes.fromhex(reply["dhash"]) if cut.keep else None
            if not 0 <= n_thumbnail <= MAX_THUMBNAIL_BYTES:
                raise ValueError("no thumbnail is as large")
            content = os.pread(self._area, n_pixels + n_thumbnail, 0)
            pixels = np.frombuffer(content, np.uint8, n_pixels).reshape(side, side, 3)
        except (KeyError, ValueError, TypeError) as error:  # it does not do what it was made for any more
            raise _DiedError("no answer that can be") from error
        return CutPhoto(width, height, pixels, content[n_pixels:] if cut.keep else None, dhash)

    def gps_tags(self, data: bytes) -> dict[int, Any]:
        """See `Guard.gps_tags`."""
        reply = self._ask(data, {"name": "", "cut": None})
        try:
            return {int(tag): tuple(value) if isinstance(value, list) else value for tag, value in reply["gps"]}
        except (KeyError, ValueError, TypeError) as error:
            raise _DiedError("no answer that can be") from error

    def cause_of_death(self, died: _DiedError) -> _Cause:
        """What to say of a photo that a process did not survive; the process is ended if it still lives."""
        late = isinstance(died.__cause__, TimeoutError)
        try:
            code = self._process.wait(0 if late else 1)
        except subprocess.TimeoutExpired:
            code = 0
        self.end(at_once=True)
        if late:
            return _Cause(f"was not decoded in {self._limits.deadline_s:g} s; it was stopped.")
        if code == -signal.SIGXCPU:
            return _Cause(f"takes more than {self._limits.cpu_s:g} s of a processor to decode; it was stopped.")
        if code in (-signal.SIGKILL, -signal.SIGTERM):
            return _Cause("was not decoded: the system ended the process that did it.", from_outside=True)
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return _Cause(f"made the process that decoded it fail ({name}).")

    def end(self, *, at_once: bool = False) -> None:
        """End the process, and free what belongs to it."""
        self._lines.close()
        self._talk.close()  # it ends by itself when it sees this
        if not at_once:
            try:
                self._process.wait(2)
            except subprocess.TimeoutExpired:
                at_once = True
        if at_once:
            self._process.kill()
            self._process.wait()
        os.close(self._area)
        self._errors.close()

    def _ask(self, data: bytes, job: dict[str, Any]) -> dict[str, Any]:
        """The process's reply; its errors as ours.

        Raises:
            ImageError: what the process says of the photo.
            GuardError: it cannot be started, or failed at something that is not the photo's fault.
            _DiedError: it did not reply.
        """
        self._wait_until_ready()
        try:
            if self._n_area > KEPT_AREA_BYTES and len(data) < self._n_area:
                os.ftruncate(self._area, 0)  # what a large photo took is not held for ever
                self._n_area = 0
            self._n_area = max(self._n_area, len(data))
            _write_all(self._area, data)
            self._talk.settimeout(self._limits.deadline_s)
            self._talk.sendall(json.dumps({**job, "n_bytes": len(data)}).encode() + b"\n")
            reply = self._line(self._limits.deadline_s)
        except OSError as error:
            raise _DiedError("no answer") from error
        if "error" in reply:
            told = reply["error"]
            kind = _KNOWN.get(str(told.get("code")), ImageError)
            raise kind(str(told.get("message")), hint=str(told.get("hint")))
        if "stopped" in reply:
            raise ImageStoppedError(f"{job['name']} needs more memory to decode than there is for one photo.")
        if "unforeseen" in reply:
            raise GuardError(f"decoding failed in a way that nobody foresaw: {str(reply['unforeseen'])[-2000:]}")
        return reply

    def _wait_until_ready(self) -> None:
        if self.is_ready:
            return
        try:
            self._line(START_S)
        except (_DiedError, OSError) as error:
            self._errors.seek(0)
            said = self._errors.read(100_000).decode(errors="replace").strip().rpartition("\n")[2]
            raise GuardError(
                f"the process to decode photos in did not start: {said or 'it says nothing'}.",
                hint="Is there memory left? `fewshot doctor` says what runs here.",
            ) from error
        self.is_ready = True

    def _line(self, timeout_s: float) -> dict[str, Any]:
        """The next line of the process.

        Raises:
            TimeoutError: none came in time.
            _DiedError: none will come, or it is no line of ours.
        """
        self._talk.settimeout(timeout_s)
        line = self._lines.readline(MAX_LINE_BYTES)
        try:
            reply = json.loads(line)
        except ValueError as error:
            raise _DiedError("no answer that can be") from error
        if not isinstance(reply, dict):
            raise _DiedError("no answer that can be")
        return reply


@lru_cache(16)
def _told(cut: Cut) -> dict[str, Any]:
    return asdict(cut)


def _write_all(area: int, data: bytes) -> None:
    view, at = memoryview(data), 0
    while at < len(view):
        at += os.pwrite(area, view[at:], at)


def _memory_file() -> int:
    """A file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("fewshot-photo")
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def default_guard(n_workers: int) -> Guard:
    """A guard for photos of up to `images.max_pixels`."""
    return Guard(n_workers, GuardLimits.for_pixels(images.max_pixels()))
