"""OpenAI messages: a list of turns with role and content; an assistant turn may carry `weight` or `train`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions, text_of, value_of
from luthier.data.records import Conversation, RawRow, Role, RowError
from luthier.data.turns import conversation, holds_turns, refuse_tools, turn

RECORD = Conversation
ROLES: Mapping[str, Role] = {
    "user": "user",
    "assistant": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
}


class Options(FormatOptions):
    """Columns of a row of messages."""

    PARTS: ClassVar[Mapping[str, str]] = {"messages": "messages", "system": "system", "tools": "tools"}
    REQUIRED: ClassVar[tuple[str, ...]] = ("messages",)
    name: Literal["openai"] = "openai"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has a column (messages, else conversations) of such turns."""
    columns = [options.column("messages")]
    if "messages" not in options.columns:
        columns.append("conversations")
    for column in columns:
        if holds_turns(sample.get(column), "role", "content"):
            chosen = options.model_copy(update={"columns": {**options.columns, "messages": column}})
            return chosen, f"the column {column} holds turns with role and content"
    return None


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""
    column = options.column("messages")

    def convert(row: RawRow) -> Conversation:
        refuse_tools(value_of(row, options, "tools"), options.column("tools"))
        values = value_of(row, options, "messages")
        if not isinstance(values, list):
            raise RowError(f"the field {column!r} is {type(values).__name__}, not a list of turns.")
        turns = [
            turn(value, f"{column}[{index}]", role_key="role", content_key="content", roles=ROLES)
            for index, value in enumerate(values)
        ]
        return conversation(turns, row.origin, system=text_of(row, options, "system"), default_system=options.system)

    return convert
