"""From loose turns to a `Conversation` that any template can render: system first, then user and assistant in turn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from luthier.data.columns import FormatOptions, checked_text, fields_found, is_finite, shown, text_of, value_of
from luthier.data.layouts import Layout
from luthier.data.records import Conversation, Message, Origin, RawRow, Role, RowError, Tools
from luthier.data.tool_calls import tool_calls, tool_definitions

LARGEST_WEIGHT = 10_000  # sums of larger ones lose the smaller in float32
THOUGHTS = ("reasoning_content", "reasoning", "thinking")
TRAINED = ("train", "training", "loss")  # whether a turn is: the first two axolotl's usual keys, the last ms-swift's
OTHER_WEIGHTS = ("train_detail", "training_detail", "loss_scale", "loss_mask", "mask")  # theirs, of parts of a turn too
TRAILING_USER = "last user turn without an answer removed"
TRAILING_TOOL = "last tool turn without an answer removed"
EMPTY_ANSWER = "empty answer (context only)"
NO_ASSISTANT_TURN = "has no assistant turn to learn from"

# what stands around a row's turns, by the layouts' names, and the usual columns
AROUND: Mapping[str, str] = {"system": "system", "tools": "tools"}


class Around(TypedDict):
    """What stands around a row's turns, as `conversation` takes it."""

    system: str
    default_system: str | None
    tools: Tools


def around(row: RawRow, options: FormatOptions) -> Around:
    """A row's columns `system` and `tools`, and the entry's own system prompt.

    Raises:
        RowError: a system prompt that is no text, tools that define no function.
    """
    return {
        "system": text_of(row, options, "system"),
        "default_system": options.system,
        "tools": tool_definitions(value_of(row, options, "tools"), f"the field {options.column('tools')!r}"),
    }


def conversation(
    turns: Sequence[Message],
    origin: Origin,
    *,
    system: str = "",
    default_system: str | None = None,
    tools: Tools = (),
) -> Conversation:
    """Checked turns.

    A last user turn (or tool turns) that nobody answers is removed and noted; an empty answer becomes context
    (weight 0) and is noted.

    Args:
        turns: system (at most one, first), user, assistant and tool turns.
        system: the row's own system column; "" where there is none.
        default_system: the data entry's system prompt, for rows that bring none.

    Raises:
        RowError: two turns of one role in a row, no answer at all, an empty question, two system prompts, tool calls
            that nothing answers.
    """
    turns = list(turns)
    own = turns.pop(0).content if turns and turns[0].role == "system" else ""
    if own and system and own != system:
        raise RowError("has two system prompts, one in its own column and one as the first turn; keep one.")
    prompt = own or system or default_system or ""
    if not any(turn.role == "assistant" for turn in turns):
        found = ", ".join(turn.role for turn in turns) or "no turns"
        raise RowError(f"{NO_ASSISTANT_TURN} (found: {found}).")
    first = 1 + bool(own)
    _check_order(turns, first)
    notes = _remove_unanswered(turns)
    for index, turn in enumerate(turns):
        if turn.content.strip() or turn.tool_calls or turn.role == "tool":
            continue
        if turn.role == "user":
            raise RowError(f"turn {index + first} (user) is empty.")
        notes.append(EMPTY_ANSWER)
        turns[index] = Message("assistant", turn.content, 0.0)
    head = (Message("system", prompt),) if prompt else ()
    return Conversation((*head, *turns), origin, tuple(notes), tools)


def _check_order(turns: Sequence[Message], first: int) -> None:
    """Raise `RowError` unless user and assistant alternate, with tool turns between a call and the next answer."""
    previous: Message | None = None
    for index, turn in enumerate(turns):
        if turn.role not in _may_follow(previous):
            after = "comes first" if previous is None else f"follows a turn of {previous.role}"
            calls = " that calls tools" if previous is not None and previous.tool_calls else ""
            rule = "a tool's result must follow" if calls else "turns must alternate user, assistant, user, ..."
            raise RowError(f"turn {index + first} is of {turn.role} and {after}{calls}; {rule}")
        previous = turn


def _may_follow(previous: Message | None) -> tuple[Role, ...]:
    if previous is None:
        return ("user",)
    if previous.role == "tool":
        return ("tool", "assistant")
    if previous.role == "user":
        return ("assistant",)
    # some data sets write the call into the answer's text, so a tool may also answer a turn without tool_calls
    return ("tool",) if previous.tool_calls else ("user", "tool")


def _remove_unanswered(turns: list[Message]) -> list[str]:
    """Take the user or tool turns off the end; what to note about it."""
    notes = []
    while turns[-1].role in ("user", "tool"):
        note = TRAILING_USER if turns.pop().role == "user" else TRAILING_TOOL
        if note not in notes:
            notes.append(note)
    return notes


def holds_turns(value: Any, *keys: str) -> bool:
    """Whether a column's value is a list of turns, one of which has these keys: of others a value may be null, which Parquet
    does not tell from one that lacks."""
    return isinstance(value, list) and any(is_turn(item, *keys) for item in value)


def is_turn(value: Any, *keys: str) -> bool:
    """Whether a value is one turn with these keys."""
    return isinstance(value, Mapping) and set(keys) <= set(value)


def turns_of(values: Any, where: str, layout: Layout) -> list[Message]:
    """The turns in a row's field.

    Args:
        where: the field's name.

    Raises:
        RowError: no list, or see `turn`.
    """
    if not isinstance(values, list):
        raise RowError(f"the field {where!r} is {type(values).__name__}, not a list of turns.")
    return [turn(value, f"{where}[{index}]", layout) for index, value in enumerate(values)]


def turn(value: Any, place: str, layout: Layout) -> Message:
    """One turn of a list of turns, as a mapping with a role and a content.

    Args:
        place: what to call it in messages ("messages[2]").

    Raises:
        RowError: wrong type, unknown role, broken tool calls, bad weight.
    """
    role_key, content_key = layout.role_key, layout.content_key
    if not isinstance(value, Mapping):
        raise RowError(f"{place} is {type(value).__name__}, not an object with {role_key!r} and {content_key!r}.")
    calls = value.get("tool_calls") or value.get("function_call")
    for key in (role_key, content_key):
        if key not in value and not (calls and key == content_key):
            raise RowError(f"{place} lacks {key!r}; fields found: {fields_found(value)}.")
    name = value[role_key]
    known = isinstance(name, str)
    key = "tool_calls" if value.get("tool_calls") else "function_call"
    if known and name in layout.call_roles:
        _refuse_thoughts(value, place)
        if calls and value.get(content_key):
            raise RowError(f"{place} has calls in {content_key!r} and in {key!r}; one of them must go.")
        made = tool_calls(calls or value.get(content_key), f"{place}.{key if calls else content_key}")
        return Message("assistant", "", _weight(value, "assistant", place), made)
    role = layout.roles.get(name) if known else None
    if role is None:
        names = ", ".join((*layout.roles, *sorted(layout.call_roles)))
        raise RowError(f"{place} has the unknown {role_key} {shown(name)}; known: {names}.")
    _refuse_thoughts(value, place)
    if calls and role != "assistant":
        raise RowError(f"{place} is of {role} and has tool calls; only assistant turns may.")
    content = value.get(content_key)
    if role == "tool":
        return _tool_turn(value, content, f"{place}.{content_key}", _weight(value, role, place))
    text = "" if calls and content is None else _content(content, f"{place}.{content_key}")
    return Message(role, text, _weight(value, role, place), tool_calls(calls, f"{place}.{key}") if calls else ())


def _refuse_thoughts(value: Mapping[str, Any], place: str) -> None:
    """A thought in a field of its own: no template here writes it, and a model would learn to think nothing.

    Raises:
        RowError: there is one.
    """
    for key in THOUGHTS:
        if value.get(key):
            raise RowError(
                f"{place} has its thought in {key!r}, which is not read. Write it into the content as the model's family "
                "does (<think>...</think> before the answer), or remove it."
            )


def _tool_turn(value: Mapping[str, Any], content: Any, where: str, weight: float) -> Message:
    """A tool's result; an object is written as JSON."""
    if isinstance(content, Mapping):
        content = json.dumps(content, ensure_ascii=False)
    name, answered = value.get("name"), value.get("tool_call_id")
    return Message(
        "tool",
        _content(content, where),
        weight,
        name=name if isinstance(name, str) else "",
        tool_call_id=answered if isinstance(answered, str) else "",
    )


def _content(value: Any, where: str) -> str:
    """Text, or a list of text parts as the chat API writes it."""
    if isinstance(value, list):
        parts = []
        for index, part in enumerate(value):
            if not isinstance(part, Mapping) or part.get("type") != "text":
                kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
                raise RowError(f"{where}[{index}] is a part of type {shown(kind)}; only text parts can be used.")
            parts.append(checked_text(part.get("text"), f"{where}[{index}].text"))
        return "".join(parts)
    return checked_text(value, where)


def _weight(value: Mapping[str, Any], role: Role, place: str) -> float:
    """The turn's loss weight from `weight` (a number) or one of `TRAINED` (true or false); null means it is not given.

    Raises:
        RowError: another value, two that contradict each other, a question to be trained, weights that are not read.
    """
    unread = next((key for key in OTHER_WEIGHTS if value.get(key) not in (None, [])), None)
    if unread is not None:
        raise RowError(
            f"{place} has {unread!r}, which is not read. A turn is trained as a whole or not at all: write weight (a "
            "number) or train (true or false) in its place, or remove it."
        )
    said = {key: value[key] for key in ("weight", *TRAINED) if value.get(key) is not None}
    weight = said.get("weight")
    for key in TRAINED:
        if key in said and not isinstance(said[key], bool):
            raise RowError(f"{place}.{key} is {shown(said[key])}; it must be true or false.")
    if weight is not None and not (is_finite(weight) and 0 <= weight <= LARGEST_WEIGHT):
        raise RowError(f"{place}.weight is {shown(weight)}; it must be a number from 0 to {LARGEST_WEIGHT:,}.")
    if len({bool(one) for one in said.values()}) > 1:
        found = " and ".join(f"{key} {shown(one)}" for key, one in said.items())
        raise RowError(f"{place} has {found}, which contradict each other.")
    trained = all(said.values())
    if role != "assistant":
        if said and trained:
            raise RowError(f"{place} is of {role} and asks to be trained; only assistant turns are.")
        return 0.0 if said else 1.0
    return float(weight) if weight is not None else float(trained)
