"""The system of record of an index: classes, supports, embeddings, history."""

from fewshot.store.connection import BUSY_TIMEOUT_S, FILE_NAME, Store
from fewshot.store.reading import About, Reader
from fewshot.store.writing import Writer

__all__ = ["BUSY_TIMEOUT_S", "FILE_NAME", "About", "Reader", "Store", "Writer"]
