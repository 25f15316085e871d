"""Databases that luthier itself reads for a prompt: their schema, some rows, some values.

Only fixed statements of ours run here. What a model writes runs in the sandbox.
"""

from __future__ import annotations

import atexit
import functools
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from luthier.foundation.errors import DataError
from luthier.sandbox.folders import PrivateFolder
from luthier.sandbox.snapshots import DatabaseError, Snapshots, unmerged
from luthier.text2sql.schema import Column, ForeignKey, Schema, Table


class Database(Protocol):
    """What a layout gives to read from a database."""

    def schema(self) -> Schema:
        """Its tables and keys.

        Raises:
            DataError: it can't be read.
        """
        ...

    def rows(self, table: Table, count: int) -> list[tuple[Any, ...]]:
        """The first rows of a table, with its columns in their order.

        Raises:
            DataError: it can't be read.
        """
        ...

    def values(self, table: Table, column: Column, most: int) -> list[str]:
        """Different texts in a column, at most so many; numbers are none.

        Raises:
            DataError: it can't be read.
        """
        ...


HIDDEN = 1  # what PRAGMA table_xinfo says of a virtual table's columns that `*` leaves out; generated ones are 2 and 3


def quoted(name: str) -> str:
    """A name as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


@dataclass(frozen=True)
class SqliteDatabase:
    """An SQLite file, opened read-only: neither it nor a journal beside it is touched.

    Where a write-ahead log or a journal holds pages of it, a copy is read into which they are merged, as queries see it.
    """

    db_id: str
    path: Path

    @contextmanager
    def _opened(self) -> Iterator[sqlite3.Connection]:
        try:
            with (
                self._file() as file,
                closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as opened,
            ):
                # public databases hold bytes that are no UTF-8
                opened.text_factory = lambda stored: stored.decode(errors="ignore")
                yield opened
        except (sqlite3.Error, DatabaseError, OSError) as error:
            raise DataError(
                f"the database {self.path} can't be read: {error}.", "Is it an SQLite file, and whole?"
            ) from error

    @contextmanager
    def _file(self) -> Iterator[Path]:
        """The file to read."""
        if unmerged(self.path):
            with _merged().held(self.path) as copy:
                yield copy
        else:
            yield self.path.absolute()

    def schema(self) -> Schema:
        """Its tables and keys, as SQLite's own catalogue gives them; without the tables in which a virtual one keeps what
        it holds, and virtual ones whose module is not there, so that nothing can read them.

        Raises:
            DataError: the file is no SQLite database, or damaged.
        """
        with self._opened() as opened:
            inner = {row[1] for row in opened.execute("PRAGMA table_list") if row[2] == "shadow"}
            names = [
                str(name)
                for (name,) in opened.execute(
                    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!' "
                    "ORDER BY rowid"
                )
                if name not in inner
            ]
            tables = {name: table for name in names if (table := _table(opened, name)) is not None}
            keys = [key for name in tables for key in _foreign_keys(opened, name, tables)]
        return Schema(self.db_id, tuple(tables.values()), tuple(keys))

    def rows(self, table: Table, count: int) -> list[tuple[Any, ...]]:
        """See `Database`."""
        columns = ", ".join(quoted(column.name) for column in table.columns)
        with self._opened() as opened:
            return opened.execute(f"SELECT {columns} FROM {quoted(table.name)} LIMIT ?", (count,)).fetchall()  # noqa: S608

    def values(self, table: Table, column: Column, most: int) -> list[str]:
        """See `Database`."""
        name = quoted(column.name)
        query = f"SELECT DISTINCT {name} FROM {quoted(table.name)} WHERE typeof({name}) = 'text' LIMIT ?"  # noqa: S608
        with self._opened() as opened:
            return [str(value) for (value,) in opened.execute(query, (most,))]


@functools.cache
def _merged() -> Snapshots:
    """Copies of the databases that need one; they are kept until the process ends."""
    folder = PrivateFolder()
    atexit.register(folder.remove)
    return Snapshots(folder.path, follow=True)


def _table(opened: sqlite3.Connection, name: str) -> Table | None:
    """A table with its columns, generated ones too; None where its module is not there."""
    try:
        found = opened.execute(f"PRAGMA table_xinfo({quoted(name)})").fetchall()
    except sqlite3.OperationalError as error:
        if "no such module" in str(error):
            return None
        raise
    rows = [row for row in found if row[6] != HIDDEN]
    key = tuple(str(row[1]) for row in sorted((row for row in rows if row[5]), key=lambda row: int(row[5])))
    return Table(name, tuple(Column(str(row[1]), str(row[2])) for row in rows), (key,) if key else ())


def _foreign_keys(opened: sqlite3.Connection, name: str, tables: dict[str, Table]) -> Iterator[ForeignKey]:
    # (id, position in the key, table, from, to, ...); the newest comes first, hence the order
    rows = opened.execute(f"PRAGMA foreign_key_list({quoted(name)})").fetchall()
    for _, position, target, column, to_column, *_ in sorted(rows, key=lambda row: (-int(row[0]), int(row[1]))):
        found = next((table for table in tables.values() if table.name.lower() == str(target).lower()), None)
        if found is None:
            continue  # SQLite lets a key point to a table that is not there: nothing can be joined over it
        if to_column is None:  # the referred table's primary key is meant
            key = found.primary_keys[0] if found.primary_keys else ()
            to_column = key[position] if position < len(key) else None
        if to_column is not None:
            yield ForeignKey(name, str(column), found.name, str(to_column))
