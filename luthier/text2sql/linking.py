"""Which part of a schema a question is about: wide schemas are cut to what fits into a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from luthier.text2sql.schema import Column, Schema, Table
from luthier.text2sql.values import FoundValue
from luthier.text2sql.words import name_words, stem, words

TABLE_SHARE = 1.5  # how much a table's own name counts beside a column's
VALUE_SCORE = 1.0  # of a column that holds a value the question names
KEY_SCORE = 0.5  # of a column that joins: without it, two tables that are kept could not be put together


class Linked:
    """A schema's columns in the order in which a question needs them."""

    def __init__(self, schema: Schema, question: str, values: Sequence[FoundValue] = ()) -> None:
        self._schema = schema
        asked = {stem(word) for word in words(question)}
        named = {(value.table, value.column) for value in values}
        keys = {(key.table, key.column) for key in schema.foreign_keys}
        keys |= {(key.to_table, key.to_column) for key in schema.foreign_keys}
        keys |= {(table.name, name) for table in schema.tables for key in table.primary_keys for name in key}
        ranked = []
        for place, table in enumerate(schema.tables):
            own = [
                _share(column, asked) + VALUE_SCORE * ((table.name, column.name) in named) for column in table.columns
            ]
            of_table = TABLE_SHARE * _share(table, asked) + max(own, default=0.0)
            for number, column in enumerate(table.columns):
                score = own[number] + of_table + KEY_SCORE * ((table.name, column.name) in keys)
                ranked.append((-score, place, number, (table.name, column.name)))
        self._order = [pair for *_, pair in sorted(ranked)]

    def __len__(self) -> int:
        return len(self._order)

    def first(self, count: int) -> Schema:
        """The schema with its `count` most needed columns; a table without any, and a key without both ends, goes."""
        kept = set(self._order[:count])
        tables = tuple(
            _cut(table, kept) for table in self._schema.tables if any(name == table.name for name, _ in kept)
        )
        keys = tuple(
            key
            for key in self._schema.foreign_keys
            if (key.table, key.column) in kept and (key.to_table, key.to_column) in kept
        )
        return replace(self._schema, tables=tables, foreign_keys=keys)


def _share(item: Column | Table, asked: set[str]) -> float:
    """The share of a name's words, or of its title's, that the question has."""
    best = 0.0
    for name in (item.name, item.title):
        found = [stem(word) for word in name_words(name)]
        if found:
            best = max(best, sum(word in asked for word in found) / len(found))
    return best


def _cut(table: Table, kept: set[tuple[str, str]]) -> Table:
    columns = tuple(column for column in table.columns if (table.name, column.name) in kept)
    keys = tuple(key for key in table.primary_keys if all((table.name, name) in kept for name in key))
    return replace(table, columns=columns, primary_keys=keys)
