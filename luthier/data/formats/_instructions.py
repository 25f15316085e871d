"""Parts that the layouts with instruction, input and output share."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar

from luthier.data.columns import FormatOptions, checked_text, shown, text_of, value_of
from luthier.data.records import Conversation, Message, RawRow, RowError
from luthier.data.turns import around, conversation

_DIALOGUE = re.compile(r"\s*Human\s*[:：].*\n\s*Assistant\s*[:：]\s*", re.DOTALL)


class InstructionOptions(FormatOptions):
    """Columns of a row with an instruction and an output."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "instruction": "instruction",
        "input": "input",
        "output": "output",
        "system": "system",
        "history": "history",
        "tools": "tools",
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "output")


def question_of(row: RawRow, options: FormatOptions, part: str = "instruction") -> str:
    """The instruction, which the format may call otherwise, and, after a line break, the input."""
    instruction, given = text_of(row, options, part), text_of(row, options, "input")
    return "\n".join(text for text in (instruction, given) if text)


def answered(row: RawRow, options: FormatOptions) -> Conversation:
    """The row's history, then its instruction with its output."""
    turns = [
        *history_of(row, options),
        Message("user", question_of(row, options)),
        Message("assistant", text_of(row, options, "output")),
    ]
    return conversation(turns, row.origin, **around(row, options))


def history_of(row: RawRow, options: FormatOptions) -> list[Message]:
    """The turns of a list of [question, answer] pairs; none where there is no such list."""
    value, column = value_of(row, options, "history"), options.column("history")
    if value is None or value == "":
        return []
    if not isinstance(value, (list, tuple)):
        raise RowError(f"the field {column!r} is {type(value).__name__}, not a list of [question, answer] pairs.")
    turns = []
    for index, pair in enumerate(value):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise RowError(f"{column}[{index}] is {shown(pair)}, not a pair [question, answer].")
        turns.append(Message("user", checked_text(pair[0], f"{column}[{index}][0]")))
        turns.append(Message("assistant", checked_text(pair[1], f"{column}[{index}][1]")))
    return turns


def is_dialogue(value: Any) -> bool:
    """Whether an instruction is turns of `Human:` and `Assistant:`, the last one to be written."""
    return isinstance(value, str) and _DIALOGUE.fullmatch(value) is not None
