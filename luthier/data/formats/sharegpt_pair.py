"""Preference pairs in the ShareGPT layout: conversations up to the answer, and the turns chosen and rejected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import value_of
from luthier.data.formats._preferences import answers_of, has_answers, pair
from luthier.data.layouts import SHAREGPT, Layout, TurnOptions
from luthier.data.records import Pair, RawRow
from luthier.data.turns import AROUND, around, holds_turns, turns_of

RECORD = Pair


class Options(TurnOptions):
    """Columns of a preference in the ShareGPT layout."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "conversations": "conversations",
        "chosen": "chosen",
        "rejected": "rejected",
        **AROUND,
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("conversations", "chosen", "rejected")
    LAYOUT: ClassVar[Layout] = SHAREGPT
    name: Literal["sharegpt_pair"] = "sharegpt_pair"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has turns with from and value, and two answers."""
    column, layout = options.column("conversations"), options.layout()
    if not holds_turns(sample.get(column), layout.role_key, layout.content_key) or not has_answers(sample, options):
        return None
    answers = f"{options.column('chosen')} and {options.column('rejected')}"
    return options, f"the column {column} holds turns with {layout.role_key} and {layout.content_key}, before {answers}"


def build(options: Options) -> Callable[[RawRow], Pair]:
    """A function from a row to a pair, which raises `RowError`."""
    layout = options.layout()

    def convert(row: RawRow) -> Pair:
        chosen, rejected = answers_of(row, options, layout)
        return pair(
            turns_of(value_of(row, options, "conversations"), options.column("conversations"), layout),
            chosen,
            rejected,
            row.origin,
            **around(row, options),
        )

    return convert
