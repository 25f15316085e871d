"""Conversations of several questions, each with its query, as SParC and CoSQL have them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from luthier.data.records import RawRow, RowError
from luthier.text2sql.layout import Question
from luthier.text2sql.layouts._questions import needed


def turns(row: RawRow) -> Iterator[Question]:
    """A row's questions, each with those before it as its history.

    A row is {database_id, interaction: [{utterance, query}, ...]}.

    Raises:
        RowError: a part is missing, empty or of another type.
    """
    db_id = needed(row, "database_id")
    interaction = row.values.get("interaction")
    if not isinstance(interaction, list) or not interaction:
        raise RowError(f"the field 'interaction' is {interaction!r}, not a list of turns")
    history: tuple[tuple[str, str], ...] = ()
    for number, turn in enumerate(interaction):
        text, query = _part(turn, "utterance", number), _part(turn, "query", number)
        yield Question(db_id, text, query, row.origin, history=history)
        history = (*history, (text, query))


def _part(turn: Any, key: str, number: int) -> str:
    value = turn.get(key) if isinstance(turn, Mapping) else None
    if not isinstance(value, str) or not value.strip():
        raise RowError(f"interaction[{number}] has {key} {value!r}, not a text")
    return value
