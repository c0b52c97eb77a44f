"""Whatever `--index` names, opened: the index in a folder or in a database."""

from pathlib import Path

from fewshot.store.addresses import is_server
from fewshot.store.connection import Store
from fewshot.store.server import ServerStore
from fewshot.store.transactions import BUSY_TIMEOUT_S, Transactions


def open_store(where: Path | str, *, create: bool = False, timeout_s: float = BUSY_TIMEOUT_S) -> Transactions:
    """The index in a folder or in a database.

    Args:
        where: a folder, or `postgresql://user@host/database`.
        create: make a new, empty index where there is none.
        timeout_s: how long to wait for another process that is writing.

    Raises:
        IndexProblem: it cannot be opened; the subclass says why.
    """
    if is_server(where):
        return ServerStore(str(where), create=create, timeout_s=timeout_s)
    return Store(Path(where), create=create, timeout_s=timeout_s)
