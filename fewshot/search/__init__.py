"""Vectors + integer ids -> nearest ids and similarities (the only door to faiss).

What is named here is loaded when it is first asked for: loading faiss takes a tenth of a query's time, and can be done
while the engine is being opened (`load_ahead`).
"""

import importlib
import sys
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewshot.search.index import Centres, VectorIndex

__all__ = ["Centres", "VectorIndex", "load_ahead"]


_INDEX = "fewshot.search.index"


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_INDEX), name)


def load_ahead() -> None:
    """Begin to load faiss in a thread; whoever needs it before it is there waits for it, and so does the end."""
    if _INDEX not in sys.modules:
        threading.Thread(target=importlib.import_module, args=(_INDEX,), name="search").start()
