"""What comparing queries needs of a database's schema."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from luthier.text2sql.schema import Column, Schema, Table

Tables = Mapping[str, tuple[str, ...]]
"""A table's name and its columns' names, in small letters."""


def named_tables(schema: Schema) -> Tables:
    """Its names in small letters, as the parser looks them up."""
    return {table.name.lower(): tuple(column.name.lower() for column in table.columns) for table in schema.tables}


def schema_of(db_id: str, columns: Iterable[tuple[str, str]]) -> Schema:
    """A schema of (table, column) pairs."""
    tables: dict[str, list[Column]] = {}
    for table, column in columns:
        tables.setdefault(table, []).append(Column(column))
    return Schema(db_id, tuple(Table(name, tuple(found)) for name, found in tables.items()))


def same_columns(schema: Schema) -> dict[str, str]:
    """Each column of a foreign key, as table.column, and the first of those it is connected with.

    As the official script does, a pair joins the first class that holds one of its columns, and classes never merge: where a
    pair connects two, a column can stand in both, and the later class counts.
    """
    names = [f"{table}.{column}" for table, columns in named_tables(schema).items() for column in columns]
    number = {name: place for place, name in enumerate(names)}
    classes: list[set[int]] = []
    for key in schema.foreign_keys:
        pair = {number[f"{key.table}.{key.column}".lower()], number[f"{key.to_table}.{key.to_column}".lower()]}
        found = next((known for known in classes if known & pair), None)
        if found is None:
            classes.append(found := set())
        found |= pair
    return {names[column]: names[min(found)] for found in classes for column in sorted(found)}
