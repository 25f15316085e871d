"""Questions made into rows {db_id, instruction, input, output, history}: what is told, and how it is cut to a length."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from luthier.data.records import Rejected, RowError
from luthier.text2sql.layout import Dataset, Question
from luthier.text2sql.linking import Linked
from luthier.text2sql.schema import Schema
from luthier.text2sql.style import Context, Style
from luthier.text2sql.values import FoundValue, ValueIndex
from luthier.text2sql.words import Likeness, words

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Told:
    """What a prompt tells beside names and keys.

    Args:
        sample_rows: of each table.
        column_values: at most so many values that the question names.
        shots: similar questions with their queries.
        meanings: what columns' names do not say.
        max_length: tokens of a row at most; a wider schema is cut to what the question is about.
    """

    sample_rows: int = 0
    column_values: int = 0
    shots: int = 0
    meanings: bool = False
    max_length: int | None = None


class Preparer:
    """Makes rows of a data set's questions.

    Args:
        pool: questions with queries, of which the similar ones are shown.
        count: a row's tokens; needed where `told` has a length.

    Attributes:
        cut: rows whose schema was cut. lost: of them, those whose own query names a table that is gone.
    """

    def __init__(
        self,
        dataset: Dataset,
        style: Style,
        told: Told,
        pool: Sequence[Question] = (),
        count: Callable[[Row], int] | None = None,
    ) -> None:
        self._dataset, self._style, self._told, self._count = dataset, style, told, count
        self._pool = [question for question in pool if question.query]
        self._likeness = Likeness([question.text for question in self._pool]) if told.shots else None
        self._instructions: dict[str, str] = {}  # thousands of questions share few schemas
        self._rows: dict[str, dict[str, list[tuple[Any, ...]]]] = {}
        self._values: dict[str, ValueIndex] = {}
        self.cut = self.lost = 0

    def rows(self, *, queries: bool = True) -> tuple[list[Row], list[Rejected]]:
        """A row for each question, in order; and the questions that can't become one.

        Args:
            queries: whether a question must have its query, to be learnt; without, outputs stay empty.
        """
        rows, rejected = [], []
        for question in self._dataset.questions:
            try:
                if queries and question.query is None:
                    raise RowError("has no query to learn (rows to predict are made with --without-queries)")
                rows.append(self.row(question if queries else replace(question, query=None)))
            except RowError as error:
                values = {"db_id": question.db_id, "question": question.text}
                rejected.append(Rejected(question.origin, str(error), values))
        return rows, rejected

    def row(self, question: Question) -> Row:
        """One row, as luthier's format text_to_sql and DB-GPT-Hub read it.

        Raises:
            RowError: its database is not there and is needed, or it is too long whatever is cut.
        """
        if self._told == Told(meanings=self._told.meanings):  # the same for all questions of a database
            if question.db_id not in self._instructions:
                context = Context(self._dataset.schemas[question.db_id], meanings=self._told.meanings)
                self._instructions[question.db_id] = self._style.instruction(context)
            return self._written(question, self._instructions[question.db_id])
        context = self._context(question)
        row = self._written(question, self._style.instruction(context))
        return row if self._fits(row) else self._shortened(question, context)

    def _written(self, question: Question, instruction: str) -> Row:
        asked = replace(question, evidence="", history=())
        return {
            "db_id": question.db_id,
            "instruction": instruction,
            "input": self._style.input(question),
            "output": question.query or "",
            "history": [[self._style.input(replace(asked, text=text)), query] for text, query in question.history],
        }

    def _context(self, question: Question) -> Context:
        schema = self._dataset.schemas[question.db_id]
        if (self._told.sample_rows or self._told.column_values) and question.db_id not in self._dataset.databases:
            raise RowError(f"its database {question.db_id!r} is not there, and rows or values of it are to be told")
        return Context(
            schema,
            self._sample_rows(schema),
            self._found_values(question, schema),
            self._examples(question),
            self._told.meanings,
        )

    def _sample_rows(self, schema: Schema) -> Mapping[str, list[tuple[Any, ...]]]:
        if not self._told.sample_rows:
            return {}
        if schema.db_id not in self._rows:
            database = self._dataset.databases[schema.db_id]
            # SQLite's own tables are not readable as any other
            self._rows[schema.db_id] = {
                table.name: database.rows(table, self._told.sample_rows)
                for table in schema.tables
                if not table.name.startswith("sqlite_")
            }
        return self._rows[schema.db_id]

    def _found_values(self, question: Question, schema: Schema) -> list[FoundValue]:
        if not self._told.column_values:
            return []
        if schema.db_id not in self._values:
            tables = tuple(table for table in schema.tables if not table.name.startswith("sqlite_"))
            database = self._dataset.databases[schema.db_id]
            self._values[schema.db_id] = ValueIndex(database, replace(schema, tables=tables))
        return self._values[schema.db_id].found_in(question.text, self._told.column_values)

    def _examples(self, question: Question) -> list[Question]:
        """The most similar questions of the pool, the best last; never the question itself, whoever asks it."""
        if self._likeness is None:
            return []
        asked = words(question.text)
        places = self._likeness.nearest(question.text, self._told.shots + SAME_QUESTION)
        others = [self._pool[place] for place in places if words(self._pool[place].text) != asked]
        return others[: self._told.shots][::-1]

    def _fits(self, row: Row) -> bool:
        if self._told.max_length is None or self._count is None:
            return True
        return self._count(row) <= self._told.max_length

    def _shortened(self, question: Question, context: Context) -> Row:
        """The row with fewer examples and then with the columns that the question needs most, as many as fit."""
        for left in range(len(context.examples) - 1, -1, -1):
            context = replace(context, examples=context.examples[len(context.examples) - left :])
            row = self._written(question, self._style.instruction(context))
            if self._fits(row):
                return row
        linked = Linked(context.schema, question.text, context.values)
        best, fewest, most = None, 1, len(linked) - 1
        while fewest <= most:
            middle = (fewest + most) // 2
            schema = linked.first(middle)
            row = self._written(question, self._style.instruction(_narrowed(context, schema)))
            if self._fits(row):
                best, fewest = (row, schema), middle + 1
            else:
                most = middle - 1
        if best is None:
            raise RowError(f"is longer than {self._told.max_length:,} tokens even with one column of its schema")
        self.cut += 1
        self.lost += _loses(question, context.schema, best[1])
        return best[0]


SAME_QUESTION = 8  # so many of a pool may ask the very same


def _narrowed(context: Context, schema: Schema) -> Context:
    """The context with rows and values of the columns that a cut schema has."""
    rows = {}
    for table in schema.tables:
        whole = context.schema.table(table.name)
        if whole is not None and context.rows.get(table.name):
            places = [place for place, column in enumerate(whole.columns) if column in table.columns]
            rows[table.name] = [tuple(row[place] for place in places) for row in context.rows[table.name]]
    values = [
        found
        for found in context.values
        if (holder := schema.table(found.table)) is not None and holder.column(found.column) is not None
    ]
    return replace(context, schema=schema, rows=rows, values=values)


def _loses(question: Question, whole: Schema, cut: Schema) -> bool:
    """Whether the question's own query names a table that a cut schema lacks."""
    named = set(words(question.query or ""))
    gone = {table.name.casefold() for table in whole.tables} - {table.name.casefold() for table in cut.tables}
    return any(set(words(name)) <= named for name in gone)
