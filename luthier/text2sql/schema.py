"""A database as a prompt tells of it: tables, columns and keys."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Column:
    """A column.

    Args:
        name: as SQL has it.
        type: as its database declares it, or the data set's own word for it; empty where unknown.
        title: its name as people say it; empty where nobody wrote one.
        description: what it holds; empty where nobody wrote it down.
    """

    name: str
    type: str = ""
    title: str = ""
    description: str = ""

    @property
    def meaning(self) -> str:
        """What its name does not say: the description, or a title that is more than the name with spaces; else empty."""
        if self.description:
            return self.description
        return self.title if _letters(self.title) != _letters(self.name) else ""


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name)).casefold()


@dataclass(frozen=True, slots=True)
class Table:
    """A table.

    Args:
        title: its name as people say it; empty where nobody wrote one.
        primary_keys: each a tuple of column names. A database has one; data sets list a composite one in either way.
    """

    name: str
    columns: tuple[Column, ...]
    primary_keys: tuple[tuple[str, ...], ...] = ()
    title: str = ""

    def column(self, name: str) -> Column | None:
        """A column by its name; SQL does not tell case apart."""
        return next((column for column in self.columns if column.name.lower() == name.lower()), None)


@dataclass(frozen=True, slots=True)
class ForeignKey:
    """A column that refers to another; a composite key is several of these."""

    table: str
    column: str
    to_table: str
    to_column: str


@dataclass(frozen=True, slots=True)
class Schema:
    """A database's tables in order, and the keys between them.

    Args:
        dialect: whose SQL it understands.
    """

    db_id: str
    tables: tuple[Table, ...]
    foreign_keys: tuple[ForeignKey, ...] = ()
    dialect: str = "SQLite"

    def table(self, name: str) -> Table | None:
        """A table by its name; SQL does not tell case apart."""
        return next((table for table in self.tables if table.name.lower() == name.lower()), None)


def disagreements(stated: Schema, found: Schema) -> list[str]:
    """Tables and columns that only one of two schemas of a database has.

    Case is not compared, as SQL does not; SQLite's own tables count on neither side.
    """
    problems = []
    for table in stated.tables:
        if table.name.lower().startswith("sqlite_"):
            continue
        other = found.table(table.name)
        if other is None:
            problems.append(f"the database has no table {table.name}")
            continue
        problems += [
            f"the database's table {table.name} has no column {column.name}"
            for column in table.columns
            if other.column(column.name) is None
        ]
        problems += [
            f"the database's table {table.name} has a column {column.name} too"
            for column in other.columns
            if table.column(column.name) is None
        ]
    problems += [
        f"the database has a table {table.name} too" for table in found.tables if stated.table(table.name) is None
    ]
    return problems
