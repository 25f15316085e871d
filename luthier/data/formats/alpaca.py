"""Alpaca: instruction, input, output, and optionally system and history (a list of [question, answer] pairs).

The input follows the instruction after a line break, as in LLaMA-Factory; every answer of the history is learnt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions, checked_text, text_of, value_of
from luthier.data.records import Conversation, Message, RawRow, RowError
from luthier.data.turns import conversation, refuse_tools

RECORD = Conversation


class Options(FormatOptions):
    """Columns of an alpaca row."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "instruction": "instruction",
        "input": "input",
        "output": "output",
        "system": "system",
        "history": "history",
        "tools": "tools",
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "output")
    name: Literal["alpaca"] = "alpaca"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has the columns of an instruction and an output."""
    if options.lacks(sample):
        return None
    return options, f"has the columns {options.column('instruction')} and {options.column('output')}"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""

    def convert(row: RawRow) -> Conversation:
        refuse_tools(value_of(row, options, "tools"), options.column("tools"))
        instruction, given = text_of(row, options, "instruction"), text_of(row, options, "input")
        question = "\n".join(part for part in (instruction, given) if part)
        turns = [
            *_history(value_of(row, options, "history"), options.column("history")),
            Message("user", question),
            Message("assistant", text_of(row, options, "output")),
        ]
        return conversation(turns, row.origin, system=text_of(row, options, "system"), default_system=options.system)

    return convert


def _history(value: Any, column: str) -> list[Message]:
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise RowError(f"the field {column!r} is {type(value).__name__}, not a list of [question, answer] pairs.")
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError(f"{column}[{index}] is {str(pair)[:60]!r}, not a pair [question, answer].")
        turns.append(Message("user", checked_text(pair[0], f"{column}[{index}][0]")))
        turns.append(Message("assistant", checked_text(pair[1], f"{column}[{index}][1]")))
    return turns
