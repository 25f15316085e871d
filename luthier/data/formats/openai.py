"""OpenAI messages: a list of turns with role and content; an assistant turn may carry `weight` or `train` (or another
name of it), and `tool_calls`, which turns of role `tool` answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.formats._preferences import is_preference
from luthier.data.formats._turn_lists import converter
from luthier.data.layouts import OPENAI, Layout, TurnOptions
from luthier.data.records import Conversation, RawRow
from luthier.data.turns import AROUND, holds_turns

RECORD = Conversation


class Options(TurnOptions):
    """Columns of a row of messages."""

    PARTS: ClassVar[Mapping[str, str]] = {"messages": "messages", **AROUND}
    REQUIRED: ClassVar[tuple[str, ...]] = ("messages",)
    LAYOUT: ClassVar[Layout] = OPENAI
    name: Literal["openai"] = "openai"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has a column (messages, else conversations) of such turns."""
    if is_preference(sample):
        return None
    columns = [options.column("messages")]
    if "messages" not in options.columns:
        columns.append("conversations")
    layout = options.layout()
    for column in columns:
        if holds_turns(sample.get(column), layout.role_key, layout.content_key):
            chosen = options.model_copy(update={"columns": {**options.columns, "messages": column}})
            return chosen, f"the column {column} holds turns with {layout.role_key} and {layout.content_key}"
    return None


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""
    return converter(options, "messages")
