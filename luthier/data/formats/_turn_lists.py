"""What the layouts whose row is a list of turns share."""

from __future__ import annotations

from collections.abc import Callable

from luthier.data.columns import value_of
from luthier.data.layouts import TurnOptions
from luthier.data.records import Conversation, RawRow
from luthier.data.turns import around, conversation, turns_of


def converter(options: TurnOptions, part: str) -> Callable[[RawRow], Conversation]:
    """A function from a row to the conversation of its turns in `part`, which raises `RowError`."""
    layout = options.layout()

    def convert(row: RawRow) -> Conversation:
        turns = turns_of(value_of(row, options, part), options.column(part), layout)
        return conversation(turns, row.origin, **around(row, options))

    return convert
