"""Tables, read by Python's csv module: shared by the csv and tsv file types."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.data.records import Origin, RawRow
from luthier.data.sources._decoding import read_lines
from luthier.foundation.errors import DataError

DELIMITERS = (";", "\t", "|", ",")


def read_table(
    path: Path, delimiter: str, *, quoted: bool = True, names: Sequence[str] | None = None
) -> Iterator[RawRow]:
    """Rows of a table; every value is text. `Origin.row` is the line where the row starts.

    Args:
        names: the columns, where the table has no header row.

    Raises:
        DataError: a bad header, a row with more or fewer fields than the header, a quote that is never closed.
    """
    csv.field_size_limit(sys.maxsize)  # documents are longer than csv's 128 KiB default
    lines = (line for _, line in read_lines(path))
    reader = csv.reader(
        lines, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quoted else csv.QUOTE_NONE, strict=quoted
    )
    header = list(names) if names is not None else None
    while True:
        line = reader.line_num + 1
        try:
            fields = next(reader, None)
        except csv.Error as error:
            raise DataError(
                f"{path}, row starting at line {line}: broken table: {error}.",
                'A field with a comma, quote or line break stands in double quotes; a quote inside it is written "".',
            ) from error
        if fields is None:
            return
        if not fields:
            continue  # an empty line
        if header is None:
            header = _check_header(fields, path, delimiter)
        elif len(fields) != len(header):
            raise DataError(
                f"{path}, line {line}: {len(fields)} fields, but the header names {len(header)}: {', '.join(header)}.",
                "Quote fields that contain the delimiter, and give every row all its fields.",
            )
        else:
            yield RawRow(dict(zip(header, fields, strict=True)), Origin(str(path), line))


def _check_header(fields: list[str], path: Path, delimiter: str) -> list[str]:
    empty = [str(index + 1) for index, name in enumerate(fields) if not name.strip()]
    if empty:
        raise DataError(
            f"{path}, line 1: column {', '.join(empty)} has no name.", "The first line must name every column."
        )
    twice = sorted({name for name in fields if fields.count(name) > 1})
    if twice:
        raise DataError(f"{path}, line 1: the column {twice[0]!r} stands twice.", "Rename one of them.")
    other = next((mark for mark in DELIMITERS if len(fields) == 1 and mark in fields[0]), None)
    if other is not None:
        raise DataError(
            f"{path}, line 1: the only column is {fields[0][:60]!r}: fields split by {other!r}, not by {delimiter!r}?",
            f"Write {delimiter!r} between fields (.csv: commas, .tsv: tabulators), or rename the column.",
        )
    return fields
