"""Any SQLite file, with files of questions and queries where there are some."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.foundation.errors import DataError
from luthier.foundation.files import need_file
from luthier.text2sql.databases import SqliteDatabase
from luthier.text2sql.layout import Dataset, LayoutOptions
from luthier.text2sql.layouts._pairs import found_questions, of_one_database

MAGIC = b"SQLite format 3\0"


class Options(LayoutOptions):
    """The questions of a database."""

    name: Literal["sqlite"] = "sqlite"
    questions: list[str] = Field(
        default_factory=list, description="Files of rows with question, query (where there is one) and evidence."
    )
    db_id: str | None = Field(None, min_length=1, description="What to call the database; default: the file's name.")


def recognizes(path: Path) -> str | None:
    """Why a path is an SQLite file, or None."""
    if path.is_file():
        with path.open("rb") as opened:
            if opened.read(len(MAGIC)) == MAGIC:
                return "an SQLite file"
    return None


def build(options: Options) -> Dataset:
    """Read the database's schema and the questions.

    Raises:
        UserError: a file is missing. DataError: it is no database, or has no tables; a file is broken.
    """
    path = need_file(Path(options.path).expanduser(), "the database")
    database = SqliteDatabase(options.db_id or path.stem, path)
    schema = database.schema()
    if not schema.tables:
        raise DataError(f"the database {path} has no tables.", "Is it the right file?")
    return of_one_database(schema, database, found_questions(path.parent, options.questions))
