"""Rows of Parquet files, streamed in batches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from ftkit.data.rows import Place, RawRow, data_error
from ftkit.errors import MachineError, Problem

_BATCH = 1024


def read_parquet(path: Path, shown: str) -> Iterator[RawRow]:
    """The rows of a Parquet file, counted from 1.

    Raises DataError where the file is no Parquet, is damaged or holds no row, and MachineError without pyarrow.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MachineError(f"{shown} is Parquet, which needs pyarrow. Install it: pip install pyarrow") from error
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=_BATCH):
                for values in batch.to_pylist():
                    number += 1
                    yield RawRow(Place(shown, "row", number), values)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        reason = str(error).splitlines()[0].rstrip(".")
        where = f"row {number + 1}" if number else ""
        raise data_error(shown, [Problem(where, "", f"not readable as Parquet: {reason}.")]) from error
    if not number:
        raise data_error(shown, [Problem("", "", "there is no row in it. Add rows.")])
