"""Preference pairs in the alpaca layout: instruction, input, history, and the answers chosen and rejected."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions
from luthier.data.formats._instructions import history_of, question_of
from luthier.data.formats._preferences import answers_of, has_answers, pair
from luthier.data.layouts import OPENAI
from luthier.data.records import Message, Pair, RawRow
from luthier.data.turns import around

RECORD = Pair


class Options(FormatOptions):
    """Columns of a preference in the alpaca layout."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "instruction": "instruction",
        "input": "input",
        "chosen": "chosen",
        "rejected": "rejected",
        "system": "system",
        "history": "history",
        "tools": "tools",
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "chosen", "rejected")
    name: Literal["alpaca_pair"] = "alpaca_pair"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has the columns of an instruction and two answers."""
    if options.lacks(sample) or not has_answers(sample, options):
        return None
    return options, f"has the columns {', '.join(options.column(part) for part in options.REQUIRED)}"


def build(options: Options) -> Callable[[RawRow], Pair]:
    """A function from a row to a pair, which raises `RowError`."""

    def convert(row: RawRow) -> Pair:
        prompt = [*history_of(row, options), Message("user", question_of(row, options))]
        chosen, rejected = answers_of(row, options, OPENAI)
        return pair(
            prompt,
            chosen,
            rejected,
            row.origin,
            **around(row, options),
        )

    return convert
