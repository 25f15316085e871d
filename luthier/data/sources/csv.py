"""CSV with a header row, quoted as RFC 4180 says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.data.records import RawRow
from luthier.data.sources._tables import read_table

SUFFIXES = (".csv",)


class Options(PluginOptions):
    """No settings."""

    name: Literal["csv"] = "csv"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """The rows, every value text; `Origin.row` is the line where the row starts.

    Raises:
        DataError: a bad header, a ragged row, a quote never closed, not UTF-8.
    """
    return read_table(path, ",")
