"""The system of record of an index: classes, supports, embeddings, history."""

from fewshot.store import searching
from fewshot.store.addresses import is_server, shown_place
from fewshot.store.connection import FILE_NAME, Store
from fewshot.store.copying import Copied, copy_index
from fewshot.store.opening import open_store
from fewshot.store.reading import About, Reader
from fewshot.store.server import ServerStore
from fewshot.store.transactions import BUSY_TIMEOUT_S, Transactions
from fewshot.store.writing import Writer

__all__ = [
    "BUSY_TIMEOUT_S",
    "FILE_NAME",
    "About",
    "Copied",
    "Reader",
    "ServerStore",
    "Store",
    "Transactions",
    "Writer",
    "copy_index",
    "is_server",
    "open_store",
    "searching",
    "shown_place",
]
