"""CoSQL: conversations in sql_state_tracking/, else as Spider. Each question is a row, with those before it as history.

Yu et al. 2019, "CoSQL: A Conversational Text-to-SQL Challenge Towards Cross-Domain Natural Language Interfaces to
Databases".
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from luthier.text2sql.layout import Dataset
from luthier.text2sql.layouts._conversations import turns
from luthier.text2sql.layouts._spider_files import SplitOptions, read_split


class Options(SplitOptions):
    """Where the parts of the data set are."""

    name: Literal["cosql"] = "cosql"


def recognizes(path: Path) -> str | None:
    """Why a folder looks like CoSQL, or None."""
    return "the folder sql_state_tracking" if (path / "sql_state_tracking").is_dir() else None


def build(options: Options) -> Dataset:
    """Read the data set.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    return read_split(options, (f"sql_state_tracking/cosql_{options.split}.json",), turns)
