"""A derived file that carries its own facts and checksum: replaced as a whole, verified when opened.

Layout: `payload | facts (JSON) | length of facts (u32) | xxh3-64 of facts (u64) | magic (8 bytes)`, little-endian.
The facts stand behind the payload so that a reader which knows only the payload's own format (faiss, for one) can
map the same file from its start.
"""

import json
import mmap
import os
import re
import secrets
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

import xxhash

from fewshot.errors import CacheDamagedError

MAGIC = b"FEWSEAL1"
_TAIL = struct.Struct("<IQ8s")
# What a killed writer left behind is taken away once its process is gone and it has lain still for a minute; where the
# process number says nothing (another machine's, or given anew since), once it has lain still for a day.
LEFT_BY_THE_DEAD_S, LEFT_BY_ANYONE_S = 60.0, 86_400.0


def write_sealed(
    path: Path, write_payload: Callable[[Path], object], facts: dict[str, Any], *, durable: bool = False
) -> None:
    """Write a sealed file at `path`, replacing what was there in one step.

    Args:
        path: where the file shall stand; its folder is created.
        write_payload: called with a temporary path, writes the payload there.
        facts: JSON-able; read back by `read_facts`.
        durable: return only once the file would outlast a power cut. What can be made anew need not.

    Raises:
        OSError: the folder cannot be written or the disk is full; what stood at `path` is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_leftovers(path)
    temporary = temporary_beside(path)
    try:
        write_payload(temporary)
        with temporary.open("rb") as payload:
            size = os.fstat(payload.fileno()).st_size
            digest = _digest(payload, size)
        text = json.dumps({**facts, "payload_bytes": size, "payload_xxh3": digest}, sort_keys=True).encode()
        with temporary.open("ab") as file:
            file.write(text + _TAIL.pack(len(text), xxhash.xxh3_64_intdigest(text), MAGIC))
            if durable:
                file.flush()
                os.fsync(file.fileno())
        temporary.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def temporary_beside(path: Path) -> Path:
    """A name for what is on its way to `path`: `clear_leftovers` knows it by that if its writer is killed."""
    # Not tempfile: its files are private, and an index may be shared by the users of a machine.
    return path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")


def writer_of(temporary: Path, path: Path) -> int | None:
    """The process that wrote what `temporary_beside` named for `path`; None: this is no such name.

    >>> writer_of(Path(".plants.backup.71.0123abcd"), Path("plants.backup")), writer_of(Path("a"), Path("b"))
    (71, None)
    """
    found = re.fullmatch(re.escape(f".{path.name}.") + r"(\d+)\.[0-9a-f]{8}", temporary.name)
    return None if found is None else int(found[1])


def clear_leftovers(path: Path) -> list[Path]:
    """Take away what killed writers of `path` left beside it; what a living one is writing stays.

    Returns:
        What was taken away. Another's file that cannot be removed stays, and is not told.
    """
    gone = []
    for found, process in [(each, writer_of(each, path)) for each in path.parent.iterdir()]:
        if process is None:
            continue
        with suppress(OSError):
            still_s = time.time() - found.stat().st_mtime
            if still_s > (LEFT_BY_ANYONE_S if _is_running(process) else LEFT_BY_THE_DEAD_S):
                shutil.rmtree(found) if found.is_dir() else found.unlink()
                gone.append(found)
    return gone


def make_folder(folder: Path) -> None:
    """Make a folder, and those that it lies in, so that they outlast a power cut; one that is there stays.

    Raises:
        OSError: one cannot be made.
    """
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlast a power cut.

    Raises:
        OSError: the folder cannot be opened, or the disk fails.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_running(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True


def read_facts(path: Path) -> dict[str, Any]:
    """The facts of a sealed file, without reading its payload.

    Raises:
        CacheDamagedError: the file is missing, cut short or cannot be read, or its facts do not fit their checksum.
    """
    with _opened(path) as (_, facts):
        return facts


def verify(path: Path) -> dict[str, Any]:
    """Check the whole file against its checksum and give its facts.

    Raises:
        CacheDamagedError: missing, cut short, unreadable, or any bit is another than when it was sealed.
    """
    with _opened(path) as (file, facts):
        if _digest(file, facts["payload_bytes"]) != facts["payload_xxh3"]:
            raise CacheDamagedError(f"{path}: its content does not fit its checksum.")
        return facts


def read_sealed(path: Path) -> tuple[bytes, dict[str, Any]]:
    """The verified payload and the facts.

    Raises:
        CacheDamagedError: as `verify`.
    """
    with _opened(path) as (file, facts):
        file.seek(0)
        payload = file.read(facts["payload_bytes"])
    if xxhash.xxh3_128_hexdigest(payload) != facts["payload_xxh3"]:
        raise CacheDamagedError(f"{path}: its content does not fit its checksum.")
    return payload, facts


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, dict[str, Any]]]:
    """A sealed file and its facts. An error of the system while they are in use is damage too."""
    try:
        with path.open("rb") as file:
            yield file, _facts(file, path)
    except OSError as error:
        raise CacheDamagedError(f"{path} cannot be read: {error.strerror or error}.") from error


def _facts(file: BinaryIO, path: Path) -> dict[str, Any]:
    size = file.seek(0, os.SEEK_END)
    if size < _TAIL.size:
        raise CacheDamagedError(f"{path} is too short to be a sealed file ({size} bytes).")
    file.seek(size - _TAIL.size)
    length, digest, magic = _TAIL.unpack(file.read(_TAIL.size))
    if magic != MAGIC or length > size - _TAIL.size:
        raise CacheDamagedError(f"{path} does not end as a sealed file does.")
    file.seek(size - _TAIL.size - length)
    text = file.read(length)
    if xxhash.xxh3_64_intdigest(text) != digest:
        raise CacheDamagedError(f"{path}: its facts do not fit their checksum.")
    facts: dict[str, Any] = json.loads(text)
    if facts["payload_bytes"] != size - _TAIL.size - length:
        raise CacheDamagedError(f"{path} holds another number of bytes than it was sealed with.")
    return facts


def _digest(file: BinaryIO, n_bytes: int) -> str:
    """The checksum of a file's first bytes."""
    if n_bytes == 0:
        return xxhash.xxh3_128_hexdigest(b"")
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped, memoryview(mapped) as view:
        return xxhash.xxh3_128_hexdigest(view[:n_bytes])
