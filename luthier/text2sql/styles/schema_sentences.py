"""Sentences about tables, columns and keys, word for word as DB-GPT-Hub writes them into its Spider training rows.

So a model trained elsewhere on such rows understands these, and the other way round.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.text2sql.layout import Question
from luthier.text2sql.schema import ForeignKey, Schema, Table
from luthier.text2sql.style import Context, Style, literal, one_line

# the lone quotation mark is DB-GPT-Hub's
INSTRUCTION = (
    "I want you to act as a SQL terminal in front of an example database, "
    "you need only to return the sql command to me.Below is an instruction that describes a task, "
    'Write a response that appropriately completes the request.\n"\n##Instruction:\n{schema}\n'
)
INPUT = "###Input:\n{question}\n\n###Response:"


class Options(PluginOptions):
    """No settings."""

    name: Literal["schema_sentences"] = "schema_sentences"


def build(options: Options) -> Style:
    """The style."""
    return SchemaSentences()


class SchemaSentences:
    """DB-GPT-Hub's instruction and input. What it does not tell stands after its sentences, in sentences too."""

    def instruction(self, context: Context) -> str:
        """The task, then the schema in sentences, then whatever else is told."""
        told = sentences(context.schema) + "".join(_more(context))
        return INSTRUCTION.format(schema=told) + "".join(map(self._example, context.examples))

    def input(self, question: Question) -> str:
        """The question between DB-GPT-Hub's marks; what one has to know stands in a line below it."""
        return INPUT.format(question="\n".join(filter(None, (question.text, question.evidence))))

    def _example(self, question: Question) -> str:
        return f"{self.input(question)}\n{one_line(question.query or '')}\n\n"


def sentences(schema: Schema) -> str:
    """A schema in words; the line breaks stand after keys only, and the last sentence ends as it does there."""
    names = ", ".join(table.name for table in schema.tables)
    tables = "".join(f"{_columns(table)}{''.join(_primary_keys(table))}" for table in schema.tables)
    return f"{schema.db_id} contains tables such as {names}. {tables}{''.join(map(_foreign_key, schema.foreign_keys))}"


def _columns(table: Table) -> str:
    return f"Table {table.name} has columns such as {', '.join(column.name for column in table.columns)}. "


def _primary_keys(table: Table) -> Iterator[str]:
    for key in table.primary_keys:
        if len(key) == 1:
            yield f"{key[0]} is the primary key.\n"
        else:
            yield f"The combination of ({', '.join(key)}) are the primary key.\n"


def _foreign_key(key: ForeignKey) -> str:
    return f"The {key.column} of {key.table} is the foreign key of {key.to_column} of {key.to_table}.\n"


def _more(context: Context) -> Iterator[str]:
    if context.meanings:
        for table in context.schema.tables:
            for column in table.columns:
                if column.meaning:
                    yield f"The {column.name} of {table.name} means {one_line(column.meaning)}.\n"
    for name, rows in context.rows.items():
        if rows:
            shown = ", ".join(f"({', '.join(map(literal, row))})" for row in rows)
            yield f"Table {name} has rows such as {shown}.\n"
    for found in context.values:
        yield f"The {found.column} of {found.table} has values such as {literal(found.value)}.\n"
