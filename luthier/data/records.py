"""What a format makes of a row, before any tokenizer sees it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a row came from, for messages and reports. `row` counts from 1; in a line-based file it is the line."""

    path: str
    row: int

    def __str__(self) -> str:
        return f"{self.path}, row {self.row}"


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. `weight` scales the loss of an assistant turn's tokens; 0 means it is context only."""

    role: Role
    content: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, a system turn first if there is one.

    Args:
        notes: what the format had to mend or found odd, each counted in the report.
    """

    messages: tuple[Message, ...]
    origin: Origin
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, all of which is learnt."""

    text: str
    origin: Origin


Record = Conversation | Document


class RowError(ValueError):
    """A row that can't be used; the message says which field, what was found, and what would do."""


@dataclass(frozen=True, slots=True)
class RawRow:
    """A row as its file gives it."""

    values: Mapping[str, Any]
    origin: Origin


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row left out, with the reason; written to rejected.jsonl."""

    origin: Origin
    reason: str
    values: Mapping[str, Any] = field(default_factory=dict)
