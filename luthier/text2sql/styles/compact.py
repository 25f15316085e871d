"""One short line a table, one a foreign key: two thirds of the tokens of sentences, for small models and modest machines.

Database concert_singer
stadium(Stadium_ID, Location, Name)
concert(concert_ID, concert_Name, Stadium_ID)
concert.Stadium_ID = stadium.Stadium_ID
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.text2sql.layout import Question
from luthier.text2sql.schema import Column, Schema
from luthier.text2sql.style import Context, Style, literal, one_line

INSTRUCTION = "Answer with one {dialect} query.\n{told}\n"


class Options(PluginOptions):
    """No settings."""

    name: Literal["compact"] = "compact"


def build(options: Options) -> Style:
    """The style."""
    return Compact()


class Compact:
    """The schema in lines, the question as it is."""

    def instruction(self, context: Context) -> str:
        """The task, the schema, then whatever else is told."""
        told = [*_schema(context.schema, meanings=context.meanings), *_more(context)]
        told += [f"{self.input(example)}\n{one_line(example.query or '')}" for example in context.examples]
        return INSTRUCTION.format(dialect=context.schema.dialect, told="\n".join(told))

    def input(self, question: Question) -> str:
        """The question, and what one has to know before it."""
        return "\n".join(filter(None, (one_line(question.evidence), one_line(question.text))))


def _schema(schema: Schema, *, meanings: bool) -> Iterator[str]:
    """The database's name, its tables with their columns, its foreign keys as the conditions that join them."""
    yield f"Database {schema.db_id}"
    for table in schema.tables:
        yield f"{table.name}({', '.join(_column(column, meanings) for column in table.columns)})"
    for key in schema.foreign_keys:
        yield f"{key.table}.{key.column} = {key.to_table}.{key.to_column}"


def _column(column: Column, meanings: bool) -> str:
    return f"{column.name}: {one_line(column.meaning)}" if meanings and column.meaning else column.name


def _more(context: Context) -> Iterator[str]:
    for name, rows in context.rows.items():
        for row in rows:
            yield f"{name}: {', '.join(map(literal, row))}"
    for found in context.values:
        yield f"{found.table}.{found.column} has {literal(found.value)}"
