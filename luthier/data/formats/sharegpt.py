"""ShareGPT: a list of turns with from and value, and optionally a system column."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions, text_of, value_of
from luthier.data.records import Conversation, RawRow, Role, RowError
from luthier.data.turns import conversation, holds_turns, refuse_tools, turn

RECORD = Conversation
ROLES: Mapping[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "system": "system",
    "observation": "tool",
    "function_call": "tool",
    "function": "tool",
    "tool": "tool",
}


class Options(FormatOptions):
    """Columns of a ShareGPT row."""

    PARTS: ClassVar[Mapping[str, str]] = {"conversations": "conversations", "system": "system", "tools": "tools"}
    REQUIRED: ClassVar[tuple[str, ...]] = ("conversations",)
    name: Literal["sharegpt"] = "sharegpt"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has a column of turns with from and value."""
    column = options.column("conversations")
    if not holds_turns(sample.get(column), "from", "value"):
        return None
    return options, f"the column {column} holds turns with from and value"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""
    column = options.column("conversations")

    def convert(row: RawRow) -> Conversation:
        refuse_tools(value_of(row, options, "tools"), options.column("tools"))
        values = value_of(row, options, "conversations")
        if not isinstance(values, list):
            raise RowError(f"the field {column!r} is {type(values).__name__}, not a list of turns.")
        turns = [
            turn(value, f"{column}[{index}]", role_key="from", content_key="value", roles=ROLES)
            for index, value in enumerate(values)
        ]
        return conversation(turns, row.origin, system=text_of(row, options, "system"), default_system=options.system)

    return convert
