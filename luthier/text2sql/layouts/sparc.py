"""SParC: conversations in train.json and dev.json, else as Spider. Each question is a row, with those before it as history.

Yu et al. 2019, "SParC: Cross-Domain Semantic Parsing in Context".
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.text2sql.layout import Dataset, LayoutOptions
from luthier.text2sql.layouts._conversations import turns
from luthier.text2sql.layouts._places import holds_conversations, need_folder, placed, question_files
from luthier.text2sql.layouts._questions import read_questions
from luthier.text2sql.layouts._tables_json import assembled


class Options(LayoutOptions):
    """Where the parts of the data set are."""

    name: Literal["sparc"] = "sparc"
    split: Literal["train", "dev"] = Field("train", description="Which of the published files to read.")
    questions: list[str] = Field(default_factory=list, description="Files of conversations, in place of the split's.")
    tables: str = Field("tables.json", description="The file of schemas.")
    database: str = Field("database", description="The folder of databases; what needs none works without.")


def recognizes(path: Path) -> str | None:
    """Why a folder looks like SParC, or None."""
    if (path / "tables.json").is_file() and not (path / "sql_state_tracking").is_dir() and holds_conversations(path):
        return "tables.json with conversations in train.json or dev.json"
    return None


def build(options: Options) -> Dataset:
    """Read the data set.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    folder = need_folder(options.path)
    files = question_files(folder, options.questions, (f"{options.split}.json",), options.split)
    questions, rejected = read_questions(files, turns)
    return assembled(questions, rejected, placed(folder, options.tables), placed(folder, options.database))
