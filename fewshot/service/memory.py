"""Memory that the process no longer uses -> back to the system, where malloc would keep it."""

import ctypes
from functools import cache
from typing import Any


def give_back_memory() -> bool:
    """Return free pages of every arena to the system; False where the C library cannot (it is none of GNU's).

    Source:
        malloc_trim(3).
    """
    trim = _malloc_trim()
    return trim is not None and bool(trim(0))


@cache
def _malloc_trim() -> Any:
    try:
        trim = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
    return trim
