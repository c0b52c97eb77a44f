"""What is derived from an index: made once a content, and kept for the last two contents."""

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

from fewshot.store.reading import Reader

Derived = TypeVar("Derived")


class OfContents(Generic[Derived]):
    """What was derived from the last two contents of an index, for several threads.

    Around a change some threads still ask in a view before it while others ask in one behind it. Neither makes the
    other's anew.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, str | None], Derived] = {}
        self._lock = threading.Lock()

    @property
    def newest(self) -> int:
        """The highest generation that something is kept of; -1: nothing is."""
        return max((generation for generation, _ in self._kept), default=-1)

    def of(self, reader: Reader, make: Callable[[], Derived]) -> Derived:
        """What is kept of the content of a view, or made of it now; who asks for the same meanwhile waits for it."""
        content = reader.content()
        kept = self._kept
        if content not in kept:
            with self._lock:
                kept = self._kept
                if content not in kept:
                    # The newest stays, whatever view is asked in beside it.
                    others = sorted(kept.items(), key=lambda item: item[0][0])[-1:]
                    self._kept = kept = dict([*others, (content, make())])
        return kept[content]
