"""Parquet files, read a batch of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.data.records import Origin, RawRow
from luthier.data.sources._arrow_rows import rows_of
from luthier.foundation.errors import DataError

SUFFIXES = (".parquet", ".pq")
BINARY = True


class Options(PluginOptions):
    """No settings."""

    name: Literal["parquet"] = "parquet"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """The rows; `Origin.row` is the position in the file, from 1.

    Raises:
        DataError: not a Parquet file, or a damaged one.
    """
    import pyarrow
    import pyarrow.parquet

    row = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            for batch in table.iter_batches():
                for values in rows_of(batch):
                    row += 1
                    yield RawRow(values, Origin(str(path), row))
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"{path} can't be read as Parquet after row {row}: {error}.", "Was the file copied or written completely?"
        ) from error
