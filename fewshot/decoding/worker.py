"""The guarded process: reads photos of strangers under limits of memory and time, and holds nothing worth having.

Started by `guard.Guard` with two file descriptors: one end of a socket for lines of JSON, and a file in memory that
both sides share, for a photo's bytes on the way in and its pixels on the way out. Nothing is unpickled on either side.
"""

import json
import os
import resource
import socket
import traceback
from pathlib import Path
from typing import Any

from PIL import Image

from fewshot import images
from fewshot.decoding.cutting import Cut, cut_photo
from fewshot.errors import FewshotError

OWN_FILES = 64
OWN_FILE_BYTES = 64_000_000


def main(socket_fd: int, area_fd: int, memory_bytes: int, cpu_s: float) -> None:
    """Answer until the other side closes.

    Args:
        socket_fd: where lines come in and go out.
        area_fd: the shared file.
        memory_bytes: how much memory decoding may take beyond what the process holds now.
        cpu_s: processor seconds for one photo; beyond, the system ends the process.
    """
    Image.init()
    _limit_memory(memory_bytes)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders in C print what a stranger's file makes them say
    with socket.socket(fileno=socket_fd) as talk, talk.makefile("rwb") as lines:
        lines.write(b"{}\n")  # ready
        lines.flush()
        for line in lines:
            _limit_time(cpu_s)
            lines.write(json.dumps(_answer(json.loads(line), area_fd)).encode() + b"\n")
            lines.flush()


def _answer(job: dict[str, Any], area_fd: int) -> dict[str, Any]:
    """What the line that goes back says: sizes of what is in the area now, an error's code, or what nobody foresaw."""
    try:
        data = os.pread(area_fd, job["n_bytes"], 0)
        if job["cut"] is None:
            return {"gps": list(images.gps_tags(data).items())}
        photo = cut_photo(data, job["name"], Cut(**job["cut"]))
        pixels, thumbnail = photo.pixels.tobytes(), photo.thumbnail or b""
        os.pwrite(area_fd, pixels + thumbnail, 0)
    except FewshotError as error:
        return {"error": error.as_dict()}
    except MemoryError:
        return {"stopped": "memory"}
    except Exception:
        return {"unforeseen": traceback.format_exc()}
    dhash = photo.dhash.hex() if photo.dhash is not None else None
    return {"size": [photo.width, photo.height], "n_thumbnail": len(thumbnail), "dhash": dhash}


def _limit_memory(memory_bytes: int) -> None:
    status = Path("/proc/self/statm")
    if status.exists():  # elsewhere the system does not keep to this limit anyway
        now = int(status.read_text().split()[0]) * resource.getpagesize()
        _limit(resource.RLIMIT_AS, now + memory_bytes)
    _limit(resource.RLIMIT_CORE, 0)
    _limit(resource.RLIMIT_FSIZE, OWN_FILE_BYTES)
    _limit(resource.RLIMIT_NOFILE, OWN_FILES)


def _limit(what: int, most: int) -> None:
    """Set both limits of the process to `most`; a stricter one that it was started under stays."""
    most = _within_hard(what, most)
    resource.setrlimit(what, (most, most))


def _limit_time(cpu_s: float) -> None:
    """Move the limit of processor time to `cpu_s` from now; it counts the whole life of a process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    most = int(used.ru_utime + used.ru_stime + cpu_s) + 1
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (_within_hard(resource.RLIMIT_CPU, most), hard))


def _within_hard(what: int, most: int) -> int:
    _, hard = resource.getrlimit(what)
    return most if hard == resource.RLIM_INFINITY else min(most, hard)
