"""CoSQL: conversations in sql_state_tracking/, else as Spider. Each question is a row, with those before it as history.

Yu et al. 2019, "CoSQL: A Conversational Text-to-SQL Challenge Towards Cross-Domain Natural Language Interfaces to
Databases".
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.text2sql.layout import Dataset, LayoutOptions
from luthier.text2sql.layouts._conversations import turns
from luthier.text2sql.layouts._places import need_folder, placed, question_files
from luthier.text2sql.layouts._questions import read_questions
from luthier.text2sql.layouts._tables_json import assembled


class Options(LayoutOptions):
    """Where the parts of the data set are."""

    name: Literal["cosql"] = "cosql"
    split: Literal["train", "dev"] = Field("train", description="Which of the published files to read.")
    questions: list[str] = Field(default_factory=list, description="Files of conversations, in place of the split's.")
    tables: str = Field("tables.json", description="The file of schemas.")
    database: str = Field("database", description="The folder of databases; what needs none works without.")


def recognizes(path: Path) -> str | None:
    """Why a folder looks like CoSQL, or None."""
    return "the folder sql_state_tracking" if (path / "sql_state_tracking").is_dir() else None


def build(options: Options) -> Dataset:
    """Read the data set.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    folder = need_folder(options.path)
    standard = (f"sql_state_tracking/cosql_{options.split}.json",)
    files = question_files(folder, options.questions, standard, options.split)
    questions, rejected = read_questions(files, turns)
    return assembled(questions, rejected, placed(folder, options.tables), placed(folder, options.database))
