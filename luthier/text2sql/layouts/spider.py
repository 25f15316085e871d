"""Spider: questions with their db_id and query in JSON, schemas in tables.json, database/DB_ID/DB_ID.sqlite.

Yu et al. 2018, "Spider: A Large-Scale Human-Labeled Dataset for Complex and Cross-Domain Semantic Parsing and
Text-to-SQL Task".
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from luthier.text2sql.layout import Dataset
from luthier.text2sql.layouts._places import holds_conversations
from luthier.text2sql.layouts._questions import single_turn
from luthier.text2sql.layouts._spider_files import SplitOptions, read_split

SPLITS = {
    "train": ("train_spider.json", "train_others.json"),
    "dev": ("dev.json",),
    "test": ("test.json",),
}


class Options(SplitOptions):
    """Where the parts of the data set are."""

    name: Literal["spider"] = "spider"


def recognizes(path: Path) -> str | None:
    """Why a folder looks like Spider, or None."""
    if not (path / "tables.json").is_file() or (path / "sql_state_tracking").is_dir() or holds_conversations(path):
        return None
    named = (path / "dev.json").is_file() or any(path.glob("train*.json"))
    return "tables.json with train*.json or dev.json" if named else None


def build(options: Options) -> Dataset:
    """Read the data set; the test split has schemas and databases of its own where they are published with it.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    prefix = "test_" if options.split == "test" and (Path(options.path) / "test_tables.json").is_file() else ""
    return read_split(
        options,
        SPLITS[options.split],
        single_turn("db_id", "question", "query"),
        tables=f"{prefix}tables.json",
        database=f"{prefix}database",
    )
