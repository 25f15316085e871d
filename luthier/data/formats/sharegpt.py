"""ShareGPT: a list of turns with from and value, and optionally a system column and tools.

A turn of `function_call` holds the assistant's call as JSON, one of `observation` the tool's result. `tags` says what
keys and roles are called where they have other names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.formats._preferences import is_preference
from luthier.data.formats._turn_lists import converter
from luthier.data.layouts import SHAREGPT, Layout, TurnOptions
from luthier.data.records import Conversation, RawRow
from luthier.data.turns import AROUND, holds_turns

RECORD = Conversation


class Options(TurnOptions):
    """Columns of a ShareGPT row."""

    PARTS: ClassVar[Mapping[str, str]] = {"conversations": "conversations", **AROUND}
    REQUIRED: ClassVar[tuple[str, ...]] = ("conversations",)
    LAYOUT: ClassVar[Layout] = SHAREGPT
    name: Literal["sharegpt"] = "sharegpt"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has a column of turns with from and value."""
    column, layout = options.column("conversations"), options.layout()
    if is_preference(sample) or not holds_turns(sample.get(column), layout.role_key, layout.content_key):
        return None
    return options, f"the column {column} holds turns with {layout.role_key} and {layout.content_key}"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""
    return converter(options, "conversations")
