"""An index in a database that others change too -> this machine's copies of it, kept in step until stopped."""

import logging
import threading
from collections.abc import Callable

from fewshot.errors import FewshotError
from fewshot.gallery.calibrations import Calibrations
from fewshot.gallery.neighbours import Neighbours
from fewshot.store import ServerStore

log = logging.getLogger(__name__)


def keep_up(
    store: ServerStore,
    neighbours: Neighbours,
    calibrations: Calibrations,
    stop: threading.Event,
    *,
    poll_s: float,
    on_look: Callable[[], None] | None,
) -> None:
    """Bring the copies of an index up to each change of it until stopped; see `Gallery.follow`.

    Args:
        store: the index.
        neighbours: the copies that are searched.
        calibrations: what is kept of how its answers are judged.
        stop: set from another thread.
        poll_s: how often to look where the database has said nothing.
        on_look: called first, each time.
    """

    def look() -> None:
        if on_look is not None:
            on_look()
        with store.read() as reader:
            if reader.about().fingerprint is not None:
                neighbours.catch_up(reader)
                calibrations.of(reader)

    failed = ""
    while not stop.is_set():
        try:
            for _ in store.changes(stop, poll_s):
                try:
                    look()
                    failed = ""
                except Exception as error:
                    failed = _told("following the index", error, failed)
        except Exception as error:  # nobody would follow any more
            failed = _told("listening to the index", error, failed)
            stop.wait(poll_s)


def _told(what: str, error: Exception, before: str) -> str:
    """What went wrong at something; told in the log, but not anew while it stays what was told `before`."""
    said = error.message if isinstance(error, FewshotError) else repr(error)
    if said != before:
        log.warning("%s: %s", what, said, exc_info=None if isinstance(error, FewshotError) else error)
    return said
