"""TSV, with or without quotes, with or without a header row.

Spreadsheets quote fields that hold tabs or line breaks; corpora such as GLUE never quote, and their sentences may
begin with a quote. The whole file is read as quoted first; where that breaks the table, as unquoted.

A table of two columns (text TAB label) has no header row where its first line can't be one: a field of it is a
number, or its second field stands in the second column again, as labels do and names of columns don't. Its columns
are then named "0" and "1". A first line of just these two names is a header.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.data.records import RawRow
from luthier.data.sources._tables import read_table
from luthier.foundation.errors import DataError

SUFFIXES = (".tsv", ".tab")
NAMES_WITHOUT_HEADER = ("0", "1")


class Options(PluginOptions):
    """No settings."""

    name: Literal["tsv"] = "tsv"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """The rows, every value text; `Origin.row` is the line where the row starts.

    Raises:
        DataError: neither reading gives every row all its fields; not UTF-8.
    """
    try:
        rows = _rows(path, quoted=True)
    except DataError as quoted_fault:
        try:
            rows = _rows(path, quoted=False)
        except DataError:
            raise quoted_fault from None
    return iter(rows)


def _rows(path: Path, *, quoted: bool) -> list[RawRow]:
    try:
        rows = list(read_table(path, "\t", quoted=quoted, names=NAMES_WITHOUT_HEADER))
    except DataError:  # not of two columns throughout
        return list(read_table(path, "\t", quoted=quoted))
    if not rows or _has_no_header(rows):
        return rows
    header = list(rows[0].values.values())
    if not all(name.strip() for name in header) or header[0] == header[1]:
        return list(read_table(path, "\t", quoted=quoted))  # which says what is wrong with the header
    return [RawRow(dict(zip(header, row.values.values(), strict=True)), row.origin) for row in rows[1:]]


def _has_no_header(rows: list[RawRow]) -> bool:
    first = tuple(rows[0].values.values())
    if first == NAMES_WITHOUT_HEADER:
        return False
    return any(map(_is_number, first)) or any(row.values["1"] == first[1] for row in rows[1:])


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
