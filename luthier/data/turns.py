"""From loose turns to a `Conversation` that any template can render: system first, then user and assistant in turn."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from luthier.data.columns import checked_text
from luthier.data.records import Conversation, Message, Origin, Role, RowError

TRAILING_USER = "last user turn without an answer removed"
EMPTY_ANSWER = "empty answer (context only)"


def conversation(
    turns: Sequence[Message], origin: Origin, *, system: str = "", default_system: str | None = None
) -> Conversation:
    """Checked turns.

    A last user turn that nobody answers is removed and noted; an empty answer becomes context (weight 0) and is noted.

    Args:
        turns: system (at most one, first), user and assistant turns.
        system: the row's own system column; "" where there is none.
        default_system: the data entry's system prompt, for rows that bring none.

    Raises:
        RowError: two turns of one role in a row, no answer at all, an empty question, two system prompts.
    """
    turns = list(turns)
    notes: list[str] = []
    own = turns.pop(0).content if turns and turns[0].role == "system" else ""
    if own and system and own != system:
        raise RowError("has two system prompts, one in its own column and one as the first turn; keep one.")
    prompt = own or system or default_system or ""
    if turns and turns[-1].role == "user" and len(turns) > 1:
        turns.pop()
        notes.append(TRAILING_USER)
    if not any(turn.role == "assistant" for turn in turns):
        found = ", ".join(turn.role for turn in turns) or "no turns"
        raise RowError(f"has no assistant turn to learn from (found: {found}).")
    for index, turn in enumerate(turns):
        expected = "user" if index % 2 == 0 else "assistant"
        place = f"turn {index + 1 + bool(own)}"
        if turn.role != expected:
            before = f"follows a turn of {turns[index - 1].role}" if index else "comes first"
            raise RowError(f"{place} is of {turn.role} and {before}; turns must alternate user, assistant, user, ...")
        if turn.content.strip():
            continue
        if turn.role == "user":
            raise RowError(f"{place} (user) is empty.")
        notes.append(EMPTY_ANSWER)
        turns[index] = Message("assistant", turn.content, 0.0)
    head = (Message("system", prompt),) if prompt else ()
    return Conversation((*head, *turns), origin, tuple(notes))


def holds_turns(value: Any, *keys: str) -> bool:
    """Whether a column's value is a list of turns with these keys."""
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping) and set(keys) <= set(value[0])


def turn(value: Any, place: str, *, role_key: str, content_key: str, roles: Mapping[str, Role]) -> Message:
    """One turn of a list of turns, as a mapping with a role and a content.

    Args:
        place: what to call it in messages ("messages[2]").
        roles: the roles the format knows.

    Raises:
        RowError: wrong type, unknown role, tool calls, bad weight.
    """
    if not isinstance(value, Mapping):
        raise RowError(f"{place} is {type(value).__name__}, not an object with {role_key!r} and {content_key!r}.")
    for key in (role_key, content_key):
        if key not in value:
            raise RowError(f"{place} lacks {key!r}; fields found: {', '.join(map(str, value)) or 'none'}.")
    if value.get("tool_calls") or value.get("function_call"):
        raise RowError(f"{place} has tool calls, which luthier can't train on yet.")
    name = value[role_key]
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        raise RowError(f"{place} has the unknown {role_key} {name!r}; known: {', '.join(roles)}.")
    if role == "tool":
        raise RowError(f"{place} is a tool turn ({role_key} {name!r}), which luthier can't train on yet.")
    content = _content(value[content_key], f"{place}.{content_key}")
    return Message(role, content, _weight(value, role, place))


def _content(value: Any, where: str) -> str:
    """Text, or a list of text parts as the chat API writes it."""
    if isinstance(value, list):
        parts = []
        for index, part in enumerate(value):
            if not isinstance(part, Mapping) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise RowError(f"{where}[{index}] is a part of type {kind!r}; only text parts can be used.")
            parts.append(checked_text(part.get("text"), f"{where}[{index}].text"))
        return "".join(parts)
    return checked_text(value, where)


def _weight(value: Mapping[str, Any], role: Role, place: str) -> float:
    """The turn's loss weight from `weight` (a number) or `train` (true or false); null means it is not given."""
    weight, train = value.get("weight"), value.get("train")
    if train is not None and not isinstance(train, bool):
        raise RowError(f"{place}.train is {train!r}; it must be true or false.")
    if weight is not None and (
        isinstance(weight, bool) or not isinstance(weight, (int, float)) or not math.isfinite(weight) or weight < 0
    ):
        raise RowError(f"{place}.weight is {weight!r}; it must be a number of at least 0.")
    if weight is not None and train is not None and (weight > 0) != train:
        raise RowError(f"{place} has weight {weight!r} and train {train!r}, which contradict each other.")
    if role != "assistant":
        if weight or train:
            raise RowError(f"{place} is of {role} and asks to be trained; only assistant turns are.")
        return 1.0
    if weight is not None:
        return float(weight)
    return 1.0 if train is None or train else 0.0


def refuse_tools(value: Any, column: str) -> None:
    """Raise `RowError` where a row's tools column holds anything."""
    if value not in (None, "", "[]") and value != []:
        raise RowError(f"has tools (in the field {column!r}), which luthier can't train on yet.")
