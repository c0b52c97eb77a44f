"""The system of record of an index: classes, supports, embeddings, history."""

from fewshot.store.addresses import is_server, shown_place
from fewshot.store.connection import FILE_NAME, Store
from fewshot.store.contents import OfContents
from fewshot.store.copying import Copied, copy_index, copy_to_folder
from fewshot.store.opening import open_store
from fewshot.store.reading import About, Reader
from fewshot.store.searching import Measured
from fewshot.store.server import ServerStore
from fewshot.store.transactions import BUSY_TIMEOUT_S, Transactions
from fewshot.store.writing import Writer

__all__ = [
    "BUSY_TIMEOUT_S",
    "FILE_NAME",
    "About",
    "Copied",
    "Measured",
    "OfContents",
    "Reader",
    "ServerStore",
    "Store",
    "Transactions",
    "Writer",
    "copy_index",
    "copy_to_folder",
    "is_server",
    "open_store",
    "shown_place",
]
