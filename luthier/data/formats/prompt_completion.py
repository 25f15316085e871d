"""Prompt and completion: two texts, or two lists of turns with role and content, as TRL writes them.

A text prompt is a user's turn, a text completion the assistant's; the chat template goes around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import value_of
from luthier.data.formats._preferences import answer_of, is_preference, prompt_of
from luthier.data.layouts import OPENAI, Layout, TurnOptions
from luthier.data.records import Conversation, RawRow
from luthier.data.turns import AROUND, around, conversation

RECORD = Conversation


class Options(TurnOptions):
    """Columns of a prompt and its completion."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "prompt": "prompt",
        "completion": "completion",
        **AROUND,
    }
    REQUIRED: ClassVar[tuple[str, ...]] = ("prompt", "completion")
    LAYOUT: ClassVar[Layout] = OPENAI
    name: Literal["prompt_completion"] = "prompt_completion"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has the columns of a prompt and a completion."""
    if options.lacks(sample) or is_preference(sample):
        return None
    return options, f"has the columns {options.column('prompt')} and {options.column('completion')}"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""
    layout = options.layout()

    def convert(row: RawRow) -> Conversation:
        turns = prompt_of(value_of(row, options, "prompt"), options.column("prompt"), layout)
        turns += answer_of(value_of(row, options, "completion"), options.column("completion"), layout)
        return conversation(
            turns,
            row.origin,
            **around(row, options),
        )

    return convert
