"""SParC: conversations in train.json and dev.json, else as Spider. Each question is a row, with those before it as history.

Yu et al. 2019, "SParC: Cross-Domain Semantic Parsing in Context".
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from luthier.text2sql.layout import Dataset
from luthier.text2sql.layouts._conversations import turns
from luthier.text2sql.layouts._places import holds_conversations
from luthier.text2sql.layouts._spider_files import SplitOptions, read_split


class Options(SplitOptions):
    """Where the parts of the data set are."""

    name: Literal["sparc"] = "sparc"


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
    return read_split(options, (f"{options.split}.json",), turns)
