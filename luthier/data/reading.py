"""An entry's rows: all of its files, one after the other, each row keeping its own file and place."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from luthier.data.detection import source_of
from luthier.data.locating import Located
from luthier.data.records import Origin, RawRow
from luthier.data.sources._compressed import inner_path
from luthier.foundation.errors import DataError


def read_files(located: Located) -> list[RawRow]:
    """All rows of the files; where they go by a name of their own, rows are counted through all of them.

    Raises:
        DataError: a file that is damaged or holds no rows (the place is named).
    """
    return list(_named(located, (row for file in located.files for row in _read(file))))


def iterate_files(located: Located) -> Iterator[RawRow]:
    """The same, read as they are asked for where the files' type allows; a file without rows is passed over."""
    return _named(located, (row for file in located.files for row in iterate_file(file)))


def _named(located: Located, rows: Iterator[RawRow]) -> Iterator[RawRow]:
    if located.named is None:
        return rows
    return (replace(row, origin=Origin(located.named, number)) for number, row in enumerate(rows, 1))


def iterate_file(path: Path) -> Iterator[RawRow]:
    """A file's rows, read as they are asked for where its type allows."""
    source = source_of(inner_path(path))
    yield from source.build(source.Options(), path)


def _read(path: Path) -> list[RawRow]:
    rows = list(iterate_file(path))
    if not rows:
        raise DataError(f"{path} holds no rows.", "Was the file written completely?")
    return rows
