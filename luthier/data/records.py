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
class ToolCall:
    """A function the assistant calls, its arguments as parsed JSON. `id` is empty where the row gives none."""

    name: str
    arguments: Mapping[str, Any]
    id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As chat templates expect it in a message's `tool_calls`."""
        call = {"type": "function", "function": {"name": self.name, "arguments": dict(self.arguments)}}
        return {"id": self.id, **call} if self.id else call


@dataclass(frozen=True, slots=True)
class Message:
    """One turn.

    Args:
        weight: scales the loss of an assistant turn's tokens; 0 means it is context only. Of others 1, or 0 where a row says
            that they are not to be trained.
        tool_calls: what an assistant turn calls.
        name, tool_call_id: of a tool turn, the function that answers and the call it answers; empty where not given.
    """

    role: Role
    content: str
    weight: float = 1.0
    tool_calls: tuple[ToolCall, ...] = ()
    name: str = ""
    tool_call_id: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As chat templates expect it; keys that say nothing are left out."""
        values: dict[str, Any] = {"role": self.role, "content": self.content}
        if self.tool_calls:
            values["tool_calls"] = [call.as_dict() for call in self.tool_calls]
        if self.name:
            values["name"] = self.name
        if self.tool_call_id:
            values["tool_call_id"] = self.tool_call_id
        return values


Tools = tuple[Mapping[str, Any], ...]
"""Definitions of functions the assistant may call: {"type": "function", "function": {"name": ..., ...}}."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """Turns in order, a system turn first if there is one.

    Args:
        notes: what the format had to mend or found odd, each counted in the report.
        tools: the functions the assistant may call.
    """

    messages: tuple[Message, ...]
    origin: Origin
    notes: tuple[str, ...] = ()
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """Two answers to one prompt, one preferred.

    Args:
        prompt: turns up to the answers, the last one of user or tool.
        chosen, rejected: the answers; one assistant turn each as a rule, or several turns that end in one.
    """

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]
    origin: Origin
    notes: tuple[str, ...] = ()
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class LabelledConversation:
    """A conversation whose last answer is wanted (True) or not (False), as KTO learns from."""

    messages: tuple[Message, ...]
    label: bool
    origin: Origin
    notes: tuple[str, ...] = ()
    tools: Tools = ()


@dataclass(frozen=True, slots=True)
class Labelled:
    """A text, or two, with a class name or a number, as the file gives it; or with several class names, or none."""

    text: str
    label: str | int | float | tuple[str, ...]
    origin: Origin
    text_pair: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
    """Plain text, all of which is learnt."""

    text: str
    origin: Origin


Record = Conversation | Document | Pair | LabelledConversation | Labelled


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
