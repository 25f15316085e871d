"""Prompt and completion: two texts, or two lists of turns with role and content, as TRL writes them.

A text prompt is a user's turn, a text completion the assistant's; the chat template goes around them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import checked_text, text_of, value_of
from luthier.data.formats._preferences import answer_of, is_preference
from luthier.data.layouts import OPENAI, Layout, TurnOptions
from luthier.data.records import Conversation, Message, RawRow
from luthier.data.tool_calls import tool_definitions
from luthier.data.turns import conversation, turns_of

RECORD = Conversation


class Options(TurnOptions):
    """Columns of a prompt and its completion."""

    PARTS: ClassVar[Mapping[str, str]] = {
        "prompt": "prompt",
        "completion": "completion",
        "system": "system",
        "tools": "tools",
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
        prompt, column = value_of(row, options, "prompt"), options.column("prompt")
        turns = (
            turns_of(prompt, column, layout)
            if isinstance(prompt, list)
            else [Message("user", checked_text(prompt, f"the field {column!r}"))]
        )
        turns += answer_of(value_of(row, options, "completion"), options.column("completion"), layout)
        return conversation(
            turns,
            row.origin,
            system=text_of(row, options, "system"),
            default_system=options.system,
            tools=tool_definitions(value_of(row, options, "tools"), f"the field {options.column('tools')!r}"),
        )

    return convert
