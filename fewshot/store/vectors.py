"""Embeddings as pgvector columns: bytes of float32 numbers on this side, `vector` on the server's."""

import struct
from collections.abc import Callable
from typing import Any

import numpy as np
import sqlalchemy as sa

_HEADER = struct.Struct(">HH")  # dimensions, and a number that is always 0


class ServerVector(sa.types.UserDefinedType[bytes]):
    """A column of pgvector's `vector`, whose values are the bytes of little-endian float32 numbers, as in SQLite.

    Bytes go both ways through the type's binary form, so that every number comes back bit for bit.
    """

    cache_ok = True

    def get_col_spec(self, **_options: Any) -> str:
        """The name of the type; of any length, since an index's is known from its first class on."""
        return "vector"

    def bind_processor(self, _dialect: sa.Dialect) -> Callable[[bytes | None], Any]:
        """Bytes -> what the driver sends."""
        from pgvector import Vector  # an extra: only servers need it

        return lambda blob: None if blob is None else Vector(np.frombuffer(blob, "<f4"))

    def column_expression(self, colexpr: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """What is selected: the type's binary form, since its text would take longer to read than to search."""
        return sa.func.vector_send(colexpr, type_=self)

    def result_processor(self, _dialect: sa.Dialect, _coltype: object) -> Callable[[bytes | None], bytes | None]:
        """What the server sends -> bytes."""

        def process(sent: bytes | None) -> bytes | None:
            if sent is None:
                return None
            return np.frombuffer(sent, ">f4", offset=_HEADER.size).astype("<f4").tobytes()

        return process
