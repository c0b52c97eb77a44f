"""A folder -> the photos that have come to rest in it: told by the system, or looked for again and again."""

import os
import stat
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from watchfiles import watch

from fewshot.datasets import PHOTO_ENDINGS, is_visible, unlisted_folder
from fewshot.errors import MissingFolderError

# However well the system tells of changes, some get lost (a full queue, a folder moved in): everything is looked
# through again so often.
FULL_LOOK_EVERY_S = 60.0
FALLBACK_POLL_S = 2.0

Signature = tuple[int, int, int]
"""Size in bytes, and when content and inode last changed, in ns: equal signatures mean the same content."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A photo at rest: its signature, and for how many seconds that has not changed before our eyes."""

    path: Path
    signature: Signature
    quiet_s: float


@dataclass(slots=True)
class _Waiting:
    signature: Signature
    since: float
    due: float


class Arrivals:
    """Tells files that are finished from files that are being written.

    A file is at rest when its size and times have not changed for `settle_s` seconds of this machine's own clock; the
    times themselves are never compared with it, since a file server's clock may be wrong.

    Args:
        folder: searched with all its sub-folders.
        settle_s: seconds.
        clock: seconds that never go back.
    """

    def __init__(self, folder: Path, settle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self.settle_s = settle_s
        self._clock = clock
        # Under names and not Paths: a folder of 100,000 photos is looked through every few seconds.
        self._waiting: dict[str, _Waiting] = {}
        self._done: dict[str, Signature] = {}

    @property
    def n_waiting(self) -> int:
        """How many files are not at rest yet, or are to be looked at once more."""
        return len(self._waiting)

    @property
    def n_unchanged(self) -> int:
        """How many of the files that were last seen are done and have not changed since."""
        return len(self._done.keys() - self._waiting.keys())

    def done(self, path: Path, signature: Signature) -> None:
        """Do not tell of this file again unless it changes."""
        self._done[str(path)] = signature

    def look(self, path: Path | None = None) -> None:
        """Take notice of a file, of all files below a folder, or of everything.

        Raises:
            MissingFolderError: the watched folder is not there, or cannot be read.
        """
        if path is None:
            seen = set()
            for file in photo_files(self.folder):
                seen.add(file.path)
                self._notice(file.path, signature_of(file))
            for gone in self._done.keys() - seen:  # a file of that name is new when it comes back
                del self._done[gone]
        elif not is_visible(path.relative_to(self.folder)) or self._is_behind_link(path):
            return
        elif _is_folder(path):
            try:
                for file in photo_files(path):
                    self._notice(file.path, signature_of(file))
            except MissingFolderError:
                pass  # deleted in this moment
        elif path.name.lower().endswith(PHOTO_ENDINGS):
            self._notice(str(path), signature_of(path))

    def settled(self) -> list[Arrival]:
        """The photos that have come to rest since the last call, in the order in which they were noticed."""
        now = self._clock()
        arrived = []
        for name, waiting in [item for item in self._waiting.items() if item[1].due <= now]:
            signature = signature_of(Path(name))
            if signature is None:
                del self._waiting[name]
            elif signature != waiting.signature:
                self._waiting[name] = _Waiting(signature, now, now + self.settle_s)
            else:
                del self._waiting[name]
                arrived.append(Arrival(Path(name), signature, now - waiting.since))
        return arrived

    def look_again(self, arrival: Arrival, quiet_s: float) -> None:
        """Tell of a photo once more when it changes, or when it has been quiet for so many seconds."""
        now = self._clock()
        since = now - arrival.quiet_s
        self._waiting.setdefault(str(arrival.path), _Waiting(arrival.signature, since, since + quiet_s))

    def _is_behind_link(self, path: Path) -> bool:
        """Whether a path is a linked folder or below one: the system tells of what changes there too."""
        below = [path, *path.parents][: len(path.relative_to(self.folder).parts)]
        return any(_is_folder(each) and os.path.islink(each) for each in below)  # noqa: PTH114 - as `_is_folder`

    def _notice(self, name: str, signature: Signature | None) -> None:
        if signature is None or self._done.get(name) == signature:
            return
        waiting = self._waiting.get(name)
        if waiting is None or waiting.signature != signature:
            now = self._clock()
            self._waiting[name] = _Waiting(signature, now, now + self.settle_s)


def watched_folder(folder: Path) -> Path:
    """The folder to watch, from the root and without links, as the system tells of what changes in it.

    Raises:
        MissingFolderError: it is not there, is no folder, or cannot be read.
    """
    try:
        with os.scandir(folder):
            return folder.resolve()
    except OSError as error:
        raise unlisted_folder(folder, error) from error


def _is_folder(path: Path) -> bool:
    """Whether a path is a folder or a link to one; `Path.is_dir` raises where a folder above may not be entered."""
    return os.path.isdir(path)  # noqa: PTH112 - see above


def signature_of(file: "Path | os.DirEntry[str]") -> Signature | None:
    """What changes whenever a file's content may have; None if there is no regular file."""
    try:
        status = file.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def photo_files(folder: Path | str) -> Iterator["os.DirEntry[str]"]:
    """Every file in a folder and below that has a photo's ending and is not hidden, in name order a folder.

    Linked folders are not entered: they may be circles.

    Raises:
        MissingFolderError: the folder is not there or cannot be read; one below it that cannot be read is passed over.
    """
    try:
        with os.scandir(folder) as listing:
            entries = sorted(listing, key=lambda entry: entry.name)
    except OSError as error:
        raise unlisted_folder(Path(folder), error) from error
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            if is_visible(Path(entry.name)):
                try:
                    yield from photo_files(entry.path)
                except MissingFolderError:
                    continue  # deleted meanwhile, or barred
        elif entry.name.lower().endswith(PHOTO_ENDINGS) and not entry.name.startswith("."):
            yield entry


def changes(
    folder: Path,
    poll_s: float | None,
    tick_s: float,
    stop: threading.Event,
    on_warning: Callable[[str], None],
) -> Iterator[Iterable[Path | None]]:
    """What to look at, at least every `tick_s` seconds (then nothing, perhaps): paths, or None for everything.

    Args:
        folder: the watched folder.
        poll_s: look through everything so often and ask the system for nothing, as file systems need that do not tell
            (network shares); None: let the system tell.
        tick_s: seconds.
        stop: ends the stream when set.
        on_warning: told when the system cannot tell and polling takes over.
    """
    yield [None]
    while poll_s is None and not stop.is_set():
        try:
            yield from _told(folder, tick_s, stop)
        except (OSError, RuntimeError) as error:  # the limit of watches is reached, or the folder was taken away
            if "decode path" in str(error):  # watchfiles ends at a name that is no UTF-8: look, and listen again
                yield [None]
                yield from _until_all_is_due(_polled(FALLBACK_POLL_S, tick_s, stop))
                continue
            poll_s = FALLBACK_POLL_S
            if not stop.is_set():
                on_warning(f"the system does not tell of new files ({error}); looking every {poll_s:g} s instead.")
    if poll_s is not None:
        yield from _polled(poll_s, tick_s, stop)


def _told(folder: Path, tick_s: float, stop: threading.Event) -> Iterator[Iterable[Path | None]]:
    told = watch(
        folder,
        watch_filter=None,
        debounce=200,
        step=50,
        stop_event=stop,
        rust_timeout=max(1, int(tick_s * 1000)),
        yield_on_timeout=True,
        raise_interrupt=True,
        force_polling=False,
    )
    # Between the first look and this moment photos may have come of which nobody told.
    first, next_look = True, time.monotonic() + FULL_LOOK_EVERY_S
    identity = _identity(folder)
    for found in told:
        if _identity(folder) != identity:
            raise OSError(f"the folder {folder} was moved, removed or mounted anew")
        everything = first or time.monotonic() >= next_look
        if everything:
            first, next_look = False, time.monotonic() + FULL_LOOK_EVERY_S
        yield [None] if everything else [Path(path) for _, path in found]


def _until_all_is_due(looks: Iterator[Iterable[Path | None]]) -> Iterator[Iterable[Path | None]]:
    """The looks up to the first through everything: so often at the most is listening begun again."""
    for paths in looks:
        yield paths
        if paths:
            return


def _identity(folder: Path) -> tuple[int, int] | None:
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _polled(poll_s: float, tick_s: float, stop: threading.Event) -> Iterator[Iterable[Path | None]]:
    next_look = time.monotonic() + poll_s
    while not stop.wait(min(tick_s, poll_s)):
        due = time.monotonic() >= next_look
        if due:
            next_look = time.monotonic() + poll_s
        yield [None] if due else []
