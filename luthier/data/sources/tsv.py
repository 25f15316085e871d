"""TSV with a header row, with or without quotes.

Spreadsheets quote fields that hold tabs or line breaks; corpora such as GLUE never quote, and their sentences may
begin with a quote. The whole file is read as quoted first; where that breaks the table, as unquoted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from luthier.config.schema import PluginOptions
from luthier.data.records import RawRow
from luthier.data.sources._tables import read_table
from luthier.foundation.errors import DataError

SUFFIXES = (".tsv", ".tab")


class Options(PluginOptions):
    """No settings."""

    name: Literal["tsv"] = "tsv"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """The rows, every value text; `Origin.row` is the line where the row starts.

    Raises:
        DataError: neither reading gives every row all its fields; not UTF-8.
    """
    try:
        rows = list(read_table(path, "\t"))
    except DataError as quoted_fault:
        try:
            rows = list(read_table(path, "\t", quoted=False))
        except DataError:
            raise quoted_fault from None
    return iter(rows)
