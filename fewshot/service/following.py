"""A thread that keeps a service in step with an index in a database, which other services change too."""

import threading

from fewshot.gallery import Gallery
from fewshot.service.tokens import Tokens


class Follower:
    """Follows an index as long as a service runs; idle for an index in a folder, which is read where it lies.

    Args:
        gallery: the opened index.
        tokens: those of the index, to be looked at with it.
    """

    def __init__(self, gallery: Gallery, tokens: Tokens) -> None:
        self._gallery = gallery
        self._tokens = tokens
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follow", daemon=True)

    def start(self) -> None:
        """Begin."""
        if self._gallery.is_shared:
            self._thread.start()

    def close(self, timeout_s: float) -> None:
        """Stop; a look that takes longer than `timeout_s` is not waited for."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def _follow(self) -> None:
        self._gallery.follow(self._stop, on_look=self._tokens.look)
