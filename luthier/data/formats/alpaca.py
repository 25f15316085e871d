"""Alpaca: instruction, input, output, and optionally system, tools and history (a list of [question, answer] pairs).

The input follows the instruction after a line break, as in LLaMA-Factory; every answer of the history is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from luthier.data.formats._instructions import InstructionOptions, answered, is_dialogue
from luthier.data.formats._preferences import is_preference
from luthier.data.records import Conversation, RawRow

RECORD = Conversation


class Options(InstructionOptions):
    """Columns of an alpaca row."""

    name: Literal["alpaca"] = "alpaca"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has the columns of an instruction and an output."""
    if options.lacks(sample) or is_preference(sample):
        return None
    if "db_id" in sample or is_dialogue(sample[options.column("instruction")]):
        return None
    return options, f"has the columns {options.column('instruction')} and {options.column('output')}"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""
    return lambda row: answered(row, options)
