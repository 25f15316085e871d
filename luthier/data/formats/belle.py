"""BELLE's multi-turn rows: `Human:` and `Assistant:` turns inside `instruction`, the last answer in `output`."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions, text_of
from luthier.data.formats._instructions import is_dialogue
from luthier.data.records import Conversation, Message, RawRow, RowError
from luthier.data.turns import conversation

RECORD = Conversation
# a speaker's name counts at the beginning of a line only: answers quote "Human:" in mid-sentence
_SPEAKER = re.compile(r"^[ \t]*(Human|Assistant)[ \t]*[:：]", re.MULTILINE)


class Options(FormatOptions):
    """Columns of a BELLE row."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "instruction": "instruction",
        "input": "input",
        "output": "output",
        "system": "system",
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("instruction", "output")
    NEEDS: ClassVar[str] = "instruction with Human: and Assistant: turns, and output"
    name: Literal["belle"] = "belle"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the instruction is a dialogue that waits for the assistant."""
    column = options.column("instruction")
    if options.lacks(sample) or not is_dialogue(sample.get(column)) or "db_id" in sample:
        return None
    return options, f"the column {column} holds Human: and Assistant: turns"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""
    column = options.column("instruction")

    def convert(row: RawRow) -> Conversation:
        if text_of(row, options, "input").strip():
            raise RowError(
                f"the field {options.column('input')!r} is not empty; only {column!r} may hold the dialogue."
            )
        turns = _turns(text_of(row, options, "instruction"), column)
        turns.append(Message("assistant", text_of(row, options, "output")))
        return conversation(turns, row.origin, system=text_of(row, options, "system"), default_system=options.system)

    return convert


def _turns(dialogue: str, column: str) -> list[Message]:
    """The dialogue's turns without the assistant's last heading."""
    parts = _SPEAKER.split(dialogue)
    if parts[0].strip():
        raise RowError(f"the field {column!r} begins with {parts[0].strip()[:40]!r}, not with 'Human:'.")
    speakers, texts = parts[1::2], [text.strip() for text in parts[2::2]]
    if not speakers or speakers[-1] != "Assistant" or texts[-1]:
        raise RowError(f"the field {column!r} does not end with 'Assistant:', where the output would go on.")
    return [
        Message("user" if speaker == "Human" else "assistant", text)
        for speaker, text in zip(speakers[:-1], texts[:-1], strict=True)
    ]
