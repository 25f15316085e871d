"""Questions to one database in a file of their own: JSON, JSONL, CSV or any file of rows, with question and query."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from luthier.data.records import RawRow, RowError
from luthier.text2sql.databases import Database
from luthier.text2sql.layout import Dataset, Question
from luthier.text2sql.layouts._questions import needed, optional, read_questions
from luthier.text2sql.schema import Schema


def of_one_database(schema: Schema, database: Database, files: Sequence[Path]) -> Dataset:
    """The data set of a database and files of questions; without files, the schema alone.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """

    def convert(row: RawRow) -> Iterator[Question]:
        named = optional(row, "db_id")
        if named and named != schema.db_id:
            raise RowError(f"its db_id is {named!r}, and the database is {schema.db_id!r}")
        query = optional(row, "query") or None
        yield Question(schema.db_id, needed(row, "question"), query, row.origin, optional(row, "evidence"))

    questions, rejected = read_questions(files, convert)
    return Dataset(questions, {schema.db_id: schema}, {schema.db_id: database}, rejected)


def found_questions(beside: Path, given: Sequence[str]) -> list[Path]:
    """Files of questions by the path that was given, or by their name beside the database."""
    places = [Path(name).expanduser() for name in given]
    return [beside / place if not place.exists() and (beside / place).exists() else place for place in places]
