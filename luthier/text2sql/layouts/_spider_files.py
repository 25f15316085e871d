"""Data sets whose parts lie as Spider's do: questions by split, tables.json, database/DB_ID/DB_ID.sqlite."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.data.records import RawRow
from luthier.text2sql.layout import Dataset, LayoutOptions, Question
from luthier.text2sql.layouts._assembling import assembled
from luthier.text2sql.layouts._places import need_folder, placed, question_files
from luthier.text2sql.layouts._questions import read_questions


class SplitOptions(LayoutOptions):
    """Where the parts of a data set with published splits are."""

    split: Literal["train", "dev", "test"] = Field("train", description="Which of the published files to read.")
    questions: list[str] = Field(default_factory=list, description="Files of questions, in place of the split's.")
    tables: str | None = Field(None, description="The file of schemas; default: the data set's own.")
    database: str | None = Field(
        None, description="The databases; default: the data set's own; what needs none works without."
    )


def read_split(
    options: SplitOptions,
    standard: Sequence[str],
    convert: Callable[[RawRow], Iterator[Question]],
    *,
    tables: str = "tables.json",
    database: str = "database",
) -> Dataset:
    """The data set of a split.

    Args:
        standard: the files of questions that are published for it.
        convert: a row to its questions; raises `RowError`.
        tables, database: the published names of the file of schemas and of the folder of databases.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    folder = need_folder(options.path)
    files = question_files(folder, options.questions, standard, options.split)
    questions, rejected = read_questions(files, convert)
    return assembled(
        questions, rejected, placed(folder, options.tables or tables), placed(folder, options.database or database)
    )


def database_folder(options: SplitOptions, database: str) -> Path:
    """The folder that `read_split` takes databases from."""
    return placed(need_folder(options.path), options.database or database)
