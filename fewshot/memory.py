"""What the C library does with memory that was freed: give it back to the system, or keep it for the next batch."""

import ctypes
from functools import cache
from typing import Any

# mallopt(3), malloc.h of the GNU C library.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_NEVER = 2**31 - 1
_LARGE_BYTES = 256 * 1024


def give_back_memory() -> bool:
    """Return free pages of every arena to the system; False where the C library cannot (it is none of GNU's).

    Source:
        malloc_trim(3).
    """
    trim = _function("malloc_trim", ctypes.c_size_t)
    return trim is not None and bool(trim(0))


def give_back_large_blocks() -> bool:
    """Return blocks of 256 KiB or more as soon as they are freed, until the process ends; False where C cannot.

    The C library takes the largest block freed so far, up to 32 MB, for the least that is worth returning. Uploads and
    pictures of many threads then lie in as many arenas, among small things that stay: with 256 clients a service held
    twice the memory for the same photos (docs/log.md).

    Source:
        mallopt(3).
    """
    return _set_options((_M_MMAP_THRESHOLD, _LARGE_BYTES))


def keep_freed_memory() -> bool:
    """Keep what is freed for what is needed next, until the process ends; False where the C library cannot.

    A training allocates the same hundreds of megabytes in every batch. Large blocks would go back to the system each
    time, which then clears every page anew: on two cores that is a third of an epoch (docs/log.md). The process keeps
    the most memory that it ever held, so this suits one that does nothing but train.

    Source:
        mallopt(3).
    """
    return _set_options((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, _NEVER))


def _set_options(*options: tuple[int, int]) -> bool:
    mallopt = _function("mallopt", ctypes.c_int, ctypes.c_int)
    return mallopt is not None and all(mallopt(option, value) for option, value in options)


@cache
def _function(name: str, *arguments: Any) -> Any:
    """A function of the C library that gives an int; None where it has no such function."""
    try:
        function = getattr(ctypes.CDLL(None), name)
    except (OSError, AttributeError, TypeError):
        return None
    function.argtypes, function.restype = list(arguments), ctypes.c_int
    return function
