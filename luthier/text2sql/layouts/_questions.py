"""Rows of questions, whatever their fields are called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from luthier.data.reading import iterate_file
from luthier.data.records import RawRow, Rejected, RowError
from luthier.foundation.files import need_file
from luthier.text2sql.layout import Question, text_problem


def read_questions(
    files: Sequence[Path], convert: Callable[[RawRow], Iterator[Question]]
) -> tuple[list[Question], list[Rejected]]:
    """The questions of files in order, and the rows that hold none.

    Args:
        convert: a row to its questions; raises `RowError`.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    questions: list[Question] = []
    rejected: list[Rejected] = []
    for file in files:
        for row in iterate_file(need_file(file, "the file of questions")):
            try:
                questions += convert(row)
            except RowError as error:
                rejected.append(Rejected(row.origin, str(error), row.values))
    return questions, rejected


def needed(row: RawRow, key: str) -> str:
    """A field's text.

    Raises:
        RowError: it is missing, empty or no text.
    """
    if problem := text_problem(row, key):
        raise RowError(problem)
    return str(row.values[key])


def optional(row: RawRow, key: str) -> str:
    """A field's text; "" where it is missing or empty.

    Raises:
        RowError: it is no text.
    """
    return needed(row, key) if row.values.get(key) not in (None, "") else ""


def single_turn(db_id: str, question: str, query: str, evidence: str = "") -> Callable[[RawRow], Iterator[Question]]:
    """A function from a row to its one question; the arguments name the fields. A row may lack the query."""

    def convert(row: RawRow) -> Iterator[Question]:
        gold = needed(row, query) if query in row.values else None
        known = optional(row, evidence) if evidence else ""
        yield Question(needed(row, db_id), needed(row, question), gold, row.origin, known)

    return convert
