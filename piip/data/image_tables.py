"""Images in the rows of Parquet files, as data sets on the Hugging Face hub have them.

A row is named like a file, `FILE.parquet#ROW`, so that everything that reads image files reads rows too.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    import pyarrow.parquet

SUFFIX = ".parquet"
COLUMN = "image"


def is_table(path: str | Path) -> bool:
    """Return whether a path names a Parquet file."""
    return Path(path).suffix.lower() == SUFFIX


def is_row(path: str | Path) -> bool:
    """Return whether a path names a row of a Parquet file, `FILE.parquet#ROW`."""
    name, _, row = Path(path).name.rpartition("#")
    return row.isdecimal() and name.lower().endswith(SUFFIX)


def table_rows(table: Path) -> list[Path]:
    """Return the names of the rows of a Parquet file.

    Args:
        table: The file. The images are its column "image", or its only column of bytes: encoded files (PNG, JPEG, ...),
            or structs with a field "bytes".

    Raises:
        ValueError: The file is no Parquet file, or it is unclear which column has the images.
    """
    file = _open(table)
    _column(table, file)
    if not file.metadata.num_rows:
        raise ValueError(f"{table} has no rows, expected a row per image.")
    return [table.with_name(f"{table.name}#{row}") for row in range(file.metadata.num_rows)]


def row_bytes(path: str | Path) -> bytes:
    """Return the encoded image of a row.

    Args:
        path: `FILE.parquet#ROW`.

    Raises:
        ValueError: The row does not exist or is empty.
    """
    name, _, row = str(path).rpartition("#")
    table = Path(name)
    version = _version(table)
    file = _opened(table, version)
    counts = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
    ends = list(accumulate(counts))
    group = bisect_right(ends, int(row))
    if group == len(ends):
        raise ValueError(f"{table} has {file.metadata.num_rows} rows, there is no row {row} (from 0)")
    value = _group(table, version, group)[int(row) - ends[group] + counts[group]].as_py()
    encoded = value["bytes"] if isinstance(value, dict) else value
    if not encoded:
        raise ValueError("the row has no bytes; files that it names are not fetched")
    return bytes(encoded)


def _open(table: Path) -> pyarrow.parquet.ParquetFile:
    return _opened(table, _version(table))


def _version(table: Path) -> tuple[int, int]:
    """Return what changes when a file is written again."""
    try:
        facts = table.stat()
    except OSError as error:
        raise ValueError(f"{table} cannot be read ({error}).") from error
    return facts.st_mtime_ns, facts.st_size


@functools.lru_cache(maxsize=8)
def _opened(table: Path, version: tuple[int, int]) -> pyarrow.parquet.ParquetFile:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(f'{table} is read with pyarrow: pip install "piip[parquet]".') from error
    try:
        return pyarrow.parquet.ParquetFile(table)
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{table} cannot be read as Parquet ({error}).") from error


@functools.lru_cache(maxsize=2)  # rows are read one after the other, by row groups of megabytes
def _group(table: Path, version: tuple[int, int], group: int) -> pyarrow.ChunkedArray:
    file = _opened(table, version)
    return file.read_row_group(group, columns=[_column(table, file)]).column(0)


def _column(table: Path, file: pyarrow.parquet.ParquetFile) -> str:
    """Return the column with the images."""
    import pyarrow

    def has_bytes(kind: pyarrow.DataType) -> bool:
        if pyarrow.types.is_dictionary(kind):
            kind = kind.value_type
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)

    names = [field.name for field in file.schema_arrow if has_bytes(field.type)]
    if COLUMN in names:
        return COLUMN
    if len(names) != 1 or COLUMN in file.schema_arrow.names:
        columns = ", ".join(file.schema_arrow.names)
        raise ValueError(f"{table} has the columns {columns}, expected the images as bytes in one called {COLUMN!r}.")
    return names[0]
