"""CREATE TABLE statements, which models know from the code they have read.

The question's form after Rajkumar et al. 2022, "Evaluating the Text-to-SQL Capabilities of Large Language Models", whose
prompts of CREATE TABLE and rows in comments did best.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.text2sql.databases import quoted
from luthier.text2sql.layout import Question
from luthier.text2sql.schema import Column, ForeignKey, Table
from luthier.text2sql.style import Context, Style, literal, one_line

_PLAIN = re.compile(r"[^\W\d]\w*")
# names that SQL reads as its own words where they are not quoted; those that data sets give to tables and columns
_RESERVED = (
    "add all alter and as asc between by case check column constraint create cross default delete desc distinct drop else "
    "end except exists foreign from full group having in index inner insert intersect into is join key left like limit not "
    "null offset on or order outer primary references right select set table then to transaction union unique update user "
    "using values view when where with"
)


class Options(PluginOptions):
    """No settings."""

    name: Literal["create_table"] = "create_table"


def build(options: Options) -> Style:
    """The style."""
    return CreateTable()


class CreateTable:
    """The schema as the statements that would make it."""

    def instruction(self, context: Context) -> str:
        """The task, then the statements; rows, values and examples as comments after them."""
        schema = context.schema
        parts = [f"Write one {schema.dialect} query that answers the question about the database {schema.db_id}."]
        for table in schema.tables:
            keys = [key for key in schema.foreign_keys if key.table == table.name]
            parts.append(statement(table, keys, meanings=context.meanings) + _rows(context, table))
        values = [
            f"-- {_name(found.table)}.{_name(found.column)} holds {literal(found.value)}" for found in context.values
        ]
        parts += ["\n".join(values)] if values else []
        parts += [f"-- {self.input(example)}\n{one_line(example.query or '')};" for example in context.examples]
        return "\n\n".join(parts) + "\n"

    def input(self, question: Question) -> str:
        """The question, and what one has to know in a line before it."""
        known = f"Known: {one_line(question.evidence)}\n" if question.evidence else ""
        return f"{known}Question: {one_line(question.text)}"


def statement(table: Table, keys: list[ForeignKey], *, meanings: bool = False) -> str:
    """CREATE TABLE, a column a line, then the keys.

    Args:
        keys: the foreign keys of this table.
        meanings: tell in comments what columns' names do not say.
    """
    single = {key[0] for key in table.primary_keys if len(key) == 1} if len(table.primary_keys) == 1 else set()
    lines = [
        (
            f"{_name(column.name)} {column.type}".rstrip() + (" PRIMARY KEY" if column.name in single else ""),
            _meaning(column, meanings),
        )
        for column in table.columns
    ]
    if table.primary_keys and not single:
        named = ", ".join(_name(name) for key in table.primary_keys for name in key)
        lines.append((f"PRIMARY KEY ({named})", ""))
    lines += [
        (f"FOREIGN KEY ({_name(key.column)}) REFERENCES {_name(key.to_table)} ({_name(key.to_column)})", "")
        for key in keys
    ]
    body = "\n".join(_joined(lines))
    return f"CREATE TABLE {_name(table.name)} (\n{body}\n);"


def _joined(lines: list[tuple[str, str]]) -> Iterator[str]:
    for number, (text, meaning) in enumerate(lines, 1):
        comma = "," if number < len(lines) else ""
        yield f"  {text}{comma}" + (f" -- {meaning}" if meaning else "")


def _meaning(column: Column, wanted: bool) -> str:
    return one_line(column.meaning) if wanted else ""


def _rows(context: Context, table: Table) -> str:
    rows = context.rows.get(table.name)
    if not rows:
        return ""
    head = " | ".join(column.name for column in table.columns)
    body = "\n".join(" | ".join(map(literal, row)).replace("*/", "* /") for row in rows)
    return f"\n/* {len(rows)} row{'s' if len(rows) > 1 else ''} of {table.name}:\n{head}\n{body}\n*/"


def _name(name: str) -> str:
    return name if _PLAIN.fullmatch(name) and name.lower() not in _RESERVED.split() else quoted(name)
