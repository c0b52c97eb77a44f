"""What every opened index offers, wherever it is kept: its transactions."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa

from fewshot.store.reading import Place, Reader
from fewshot.store.writing import Writer

BUSY_TIMEOUT_S = 30.0
# The option of a connection that says whether its transaction may change something.
WRITES = "fewshot_write"


class Transactions(ABC):
    """An opened index.

    Attributes:
        name: what messages call the index.
        place: what `--index` calls it, without a password.
        cache_name: what its caches are called on this machine; None: they are kept in its own folder.
    """

    name: str
    place: Path | str
    cache_name: str | None = None
    _engine: sa.Engine

    @contextlib.contextmanager
    def read(self) -> Iterator[Reader]:
        """One unchanging view of the index, whatever other processes write meanwhile.

        Raises:
            IndexMissingError: the index's file has been moved or removed since it was opened.
            NotAnIndexError: it has been replaced by a file that is no index of this format.
            DatabaseUnreachableError: the server went away.
        """
        with self._connect(write=False) as connection, connection.begin():
            yield Reader(Place(self.name, self.place), connection)

    @contextlib.contextmanager
    def write(self) -> Iterator[Writer]:
        """One change: all of it is kept, or none; durable when the block ends.

        Raises:
            IndexLockedError: another process has been writing for longer than the timeout.
            IndexMissingError, NotAnIndexError: as `read`.
            DiskFullError: nothing of the change is kept.
            DatabaseUnreachableError: the server went away; where that was while it confirmed the change, the change
                may have been kept.
        """
        with self._connect(write=True) as connection, connection.begin():
            yield Writer(Place(self.name, self.place), connection)

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    @abstractmethod
    def _connect(self, *, write: bool) -> sa.Connection:
        """A connection whose next transaction reads one view, or changes the index alone."""
