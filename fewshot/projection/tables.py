"""Points, pictures and inspections -> tables for other programs: CSV and Parquet."""

import csv
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from fewshot.projection.pictures import Picture
from fewshot.projection.spaces import Space

# Of the columns that may be empty throughout, which in one space only would make two tables that do not fit together.
_TYPES = {"similarity": pa.float64(), "agrees": pa.bool_()}


def coordinates(spaces: Sequence[Space], pictures: Sequence[Picture]) -> dict[str, bytes]:
    """Where every point lies: columns of the point, then METHOD_DIMSd_AXIS such as umap_3d_z.

    Returns:
        "csv" and "parquet": the files.
    """
    tables = []
    for number, space in enumerate(spaces):
        rows = [point.as_dict() for point in space.points]
        columns: dict[str, Any] = {"space": [space.name] * len(rows)}
        columns |= {name: pa.array([row[name] for row in rows], _TYPES.get(name)) for name in rows[0]}
        own = sorted((each for each in pictures if each.space == number), key=lambda each: (each.method, each.n_dims))
        for picture in own:
            for axis, values in zip("xyz", picture.points.T, strict=False):
                columns[f"{picture.method}_{picture.n_dims}d_{axis}"] = np.ascontiguousarray(values)
        tables.append(pa.table(columns))
    table = pa.concat_tables(tables)
    as_csv, as_parquet = io.BytesIO(), io.BytesIO()
    pyarrow.csv.write_csv(table, as_csv)
    pyarrow.parquet.write_table(table, as_parquet)
    return {"csv": as_csv.getvalue(), "parquet": as_parquet.getvalue()}


def as_csv(headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """A small table as CSV."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(headings)
    writer.writerows(rows)
    return buffer.getvalue()
