"""Vectors + integer ids -> nearest ids and similarities (the only door to faiss)."""

from fewshot.search.bases import EXACT_LIMIT, NO_ID
from fewshot.search.index import Centres, VectorIndex

__all__ = ["EXACT_LIMIT", "NO_ID", "Centres", "VectorIndex"]
