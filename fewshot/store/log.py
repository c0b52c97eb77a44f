"""SQLite's write-ahead log, looked at before it is opened: whether a commit stands behind a damaged place."""

import struct
import time
from collections import Counter
from pathlib import Path

_HEADER = struct.Struct(">8I")  # magic, version, page size, checkpoint, two salts, two sums
_FRAME = struct.Struct(">6I")  # page, pages behind this commit (0: no commit), two salts, two sums
_MAGIC = 0x377F0682
_COUNTED = struct.Struct("=16xII2I8s2I")  # of the wal-index's head: frames, pages, two sums, two salts, its own sums
_LOOKS, _PAUSE_S = 10, 0.1


def damaged_log(file: Path) -> str | None:
    """What is wrong with the log of an index file, in a sentence; None where nothing is.

    SQLite reads a log up to the first place that does not fit its checksum and takes that for where a crash cut it off.
    If a later frame of the same log commits something, it is damage, and what was committed there is lost. Unless the
    frame was never counted: a writer killed before its commit stood leaves frames of which the next change overwrites
    the first. How many frames count stands in the wal-index (`-shm`), if that is there and fits the log; without it the
    two cannot be told apart, and it is called damage.

    A log that another process writes meanwhile is looked at until it is found sound, or twice the same. This process
    must not have the index open: closing a file drops the locks that it holds on it.

    Args:
        file: the index file; its log stands beside it, if it has one.

    Source:
        "The WAL File Format" and "The WAL-Index File Format", sqlite.org/fileformat2.html#walformat and
        sqlite.org/walformat.html.
    """
    log, before = file.with_name(f"{file.name}-wal"), None
    for _ in range(_LOOKS):
        seen = _head_of_index(file), _content(log)
        found = _damage(log.name, seen[1], seen[0], is_live=before is not None and seen != before)
        if found is None or seen == before:
            break
        before = seen
        time.sleep(_PAUSE_S)
    return found


def _damage(name: str, content: bytes, index_head: bytes, *, is_live: bool) -> str | None:
    if not content:
        return None
    if len(content) < _HEADER.size:
        return f"{name} is cut short ({len(content)} bytes)"
    magic, _, page_size, _, *rest = _HEADER.unpack_from(content)
    salts, sums = tuple(rest[:2]), tuple(rest[2:])
    order = ">" if magic & 1 else "<"
    if magic & ~1 != _MAGIC or _sum(content[:24], order, (0, 0)) != sums:
        return f"the head of {name} does not fit its checksum; the changes in it are lost"
    step = _FRAME.size + page_size
    n_frames = (len(content) - _HEADER.size) // step
    counted = _counted(index_head, content, step)
    bad = None
    for number in range(n_frames):
        at = _HEADER.size + number * step
        _, commits, *fields = _FRAME.unpack_from(content, at)
        if bad is None:
            page = content[at + _FRAME.size : at + step]
            sums = _sum(page, order, _sum(content[at : at + 8], order, sums))
            if tuple(fields[:2]) != salts or sums != tuple(fields[2:]):
                bad = number
            elif commits and counted is not None and number >= counted and not is_live:
                counted = None  # the log knows of a later commit: the wal-index is from before a crash
        if bad is not None and counted is not None and number >= counted:
            return None
        # A frame left over from before the log was begun anew has neither of its two salts.
        if bad is not None and commits and (fields[0] == salts[0] or fields[1] == salts[1]):
            return f"{name} is damaged at frame {bad + 1} of {n_frames}; changes committed behind it are lost"
    return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _head_of_index(file: Path) -> bytes:
    """The head of the wal-index; without a file, or while it is changed (its two copies differ), nothing."""
    head = _content(file.with_name(f"{file.name}-shm"))[:96]
    return head[:48] if len(head) == 96 and head[:48] == head[48:] else b""


def _counted(index_head: bytes, content: bytes, step: int) -> int | None:
    """How many frames of a log count by the wal-index; None where that says nothing of this log."""
    if not index_head or index_head[12] != 1:  # it was not filled
        return None
    n_frames, _, *frame_sums, salts, first, second = _COUNTED.unpack(index_head)
    if salts != content[16:24] or _sum(index_head[:40], "=", (0, 0)) != (first, second):
        return None
    at = _HEADER.size + (n_frames - 1) * step
    if n_frames and (at + step > len(content) or list(_FRAME.unpack_from(content, at)[4:]) != frame_sums):
        return None
    return int(n_frames)


def fold_in(file: Path) -> None:
    """Write the pages of a damaged log into the index file, those behind the damage too, and take the log away.

    Which of them are sound is for the reader to find out; SQLite would have dropped them all. They may also be left
    over from a change that never counted, and older than what they replace: `salvage.joined` sees to that.

    Args:
        file: a copy of the index file, its log (and its wal-index, if there is one) beside it; they are changed.
    """
    log = file.with_name(f"{file.name}-wal")
    content = log.read_bytes()
    head = file.read_bytes()[:100]
    page_size = int.from_bytes(head[16:18], "big") if len(head) == 100 else 0
    if page_size < 512:
        page_size = 4096  # what SQLite takes by itself, and every index has
    step = _FRAME.size + page_size
    counted = _counted(_head_of_index(file), content, step)
    places = range(_HEADER.size, len(content) - step + 1, step)[:counted]
    frames = [(*_FRAME.unpack_from(content, at), at) for at in places]
    if frames:
        # Its head may be damaged; most frames have its salts, those left over from before have neither.
        salts = Counter(salt for frame in frames for salt in frame[2:4])
        ours = {salt for salt, n in salts.items() if n > len(frames) / 2} or set(frames[0][2:4])
        frames = [frame for frame in frames if ours & set(frame[2:4])]
        commits = [number for number, frame in enumerate(frames) if frame[1]]
        with file.open("r+b") as opened:
            n_pages = max(frame[1] for frame in frames) if commits else 0
            for page, _, *_, at in frames[: commits[-1] + 1] if commits else []:
                if 0 < page <= max(n_pages, len(frames)):
                    opened.seek((page - 1) * page_size)
                    opened.write(content[at + _FRAME.size : at + step])
    log.unlink()
    file.with_name(f"{file.name}-shm").unlink(missing_ok=True)


def _sum(data: bytes, order: str, sums: tuple[int, ...]) -> tuple[int, int]:
    first, second = sums
    words = struct.unpack(f"{order}{len(data) // 4}I", data)
    for even, odd in zip(words[::2], words[1::2], strict=True):
        first = (first + even + second) & 0xFFFFFFFF
        second = (second + odd + first) & 0xFFFFFFFF
    return first, second
