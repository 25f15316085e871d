"""Spider: questions with their db_id and query in JSON, schemas in tables.json, database/DB_ID/DB_ID.sqlite.

Yu et al. 2018, "Spider: A Large-Scale Human-Labeled Dataset for Complex and Cross-Domain Semantic Parsing and
Text-to-SQL Task".
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.text2sql.layout import Dataset, LayoutOptions
from luthier.text2sql.layouts._places import holds_conversations, need_folder, placed, question_files
from luthier.text2sql.layouts._questions import read_questions, single_turn
from luthier.text2sql.layouts._tables_json import assembled

SPLITS = {
    "train": ("train_spider.json", "train_others.json"),
    "dev": ("dev.json",),
    "test": ("test.json",),
}


class Options(LayoutOptions):
    """Where the parts of the data set are."""

    name: Literal["spider"] = "spider"
    split: Literal["train", "dev", "test"] = Field("train", description="Which of the published files to read.")
    questions: list[str] = Field(default_factory=list, description="Files of questions, in place of the split's.")
    tables: str = Field("tables.json", description="The file of schemas.")
    database: str = Field("database", description="The folder of databases; what needs none works without.")


def recognizes(path: Path) -> str | None:
    """Why a folder looks like Spider, or None."""
    if not (path / "tables.json").is_file() or (path / "sql_state_tracking").is_dir():
        return None
    if not (path / "dev.json").is_file() and not list(path.glob("train*.json")):
        return None
    return "tables.json with train*.json or dev.json" if not holds_conversations(path) else None


def build(options: Options) -> Dataset:
    """Read the data set.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    folder = need_folder(options.path)
    files = question_files(folder, options.questions, SPLITS[options.split], options.split)
    questions, rejected = read_questions(files, single_turn("db_id", "question", "query"))
    return assembled(questions, rejected, placed(folder, options.tables), placed(folder, options.database))
