"""Parts that the layouts of preference pairs and judged answers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.data.columns import FormatOptions, checked_text, described, value_of
from luthier.data.layouts import Layout
from luthier.data.records import Message, Origin, Pair, RawRow, RowError, Tools
from luthier.data.turns import conversation, turn, turns_of

SAME_ANSWERS = "chosen and rejected are the same"
_WORDS: Mapping[str, bool] = {"true": True, "false": False, "1": True, "0": False}


def has_answers(sample: Mapping[str, Any], options: Any) -> bool:
    """Whether the file has both columns of a preference."""
    return all(sample.get(options.column(part)) is not None for part in ("chosen", "rejected"))


def is_preference(sample: Mapping[str, Any]) -> bool:
    """Whether rows compare or judge answers, so that learning all of them would be wrong."""
    return ("chosen" in sample and "rejected" in sample) or is_judgement(sample.get("label"))


def is_judgement(value: Any) -> bool:
    """Whether a label says true or false."""
    return isinstance(value, bool) or (isinstance(value, str) and value.lower() in ("true", "false"))


def judgement(value: Any, column: str) -> bool:
    """A label as true or false; 1 and 0 are taken for them.

    Raises:
        RowError: anything else.
    """
    found = _WORDS.get(str(value).lower()) if isinstance(value, (bool, int, str)) else None
    if found is None:
        raise RowError(f"the field {column!r} is {described(value)}; it must be true or false.")
    return found


def answer_of(value: Any, column: str, layout: Layout) -> list[Message]:
    """An answer written as text, as one turn, or as a list of turns.

    Raises:
        RowError: none of these, or no assistant turn at its end.
    """
    where = f"the field {column!r}"
    if isinstance(value, str):
        return [Message("assistant", checked_text(value, where))]
    if isinstance(value, Mapping):
        answer = [turn(value, column, layout)]
    elif isinstance(value, list):
        answer = turns_of(value, column, layout)
    else:
        raise RowError(f"{where} is {type(value).__name__}, not text, a turn or a list of turns.")
    if not answer or answer[-1].role != "assistant":
        raise RowError(f"{where} ends with {answer[-1].role if answer else 'nothing'}, not with an assistant turn.")
    return answer


def prompt_of(value: Any, column: str, layout: Layout) -> list[Message]:
    """A prompt written as text or as a list of turns.

    Raises:
        RowError: neither.
    """
    if isinstance(value, list):
        return turns_of(value, column, layout)
    return [Message("user", checked_text(value, f"the field {column!r}"))]


def answers_of(row: RawRow, options: FormatOptions, layout: Layout) -> tuple[list[Message], list[Message]]:
    """The answers chosen and rejected; raises as `answer_of` does."""
    chosen, rejected = (
        answer_of(value_of(row, options, part), options.column(part), layout) for part in ("chosen", "rejected")
    )
    return chosen, rejected


def shared_start(first: Sequence[Message], second: Sequence[Message]) -> int:
    """How many turns two conversations begin with alike; at least one turn of each is left."""
    count = 0
    while count < min(len(first), len(second)) - 1 and _alike(first[count], second[count]):
        count += 1
    return count


def _alike(first: Message, second: Message) -> bool:
    """A question's weight trains nothing here."""
    return first == (second if first.role == "assistant" else replace(second, weight=first.weight))


def pair(
    prompt: Sequence[Message],
    chosen: Sequence[Message],
    rejected: Sequence[Message],
    origin: Origin,
    *,
    system: str = "",
    default_system: str | None = None,
    tools: Tools = (),
) -> Pair:
    """A checked pair; the answers of the prompt's earlier turns are context (weight 0).

    Raises:
        RowError: the prompt does not end where an answer is due, or see `conversation`.
    """
    if not prompt or prompt[-1].role not in ("user", "tool"):
        found = prompt[-1].role if prompt else "nothing"
        raise RowError(f"the prompt ends with {found}, not with a user turn that both answers follow.")
    whole = []
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        try:
            whole.append(
                conversation([*prompt, *answer], origin, system=system, default_system=default_system, tools=tools)
            )
        except RowError as error:
            raise RowError(f"prompt with {name}: {error}") from error
    better, worse = whole
    notes = tuple(dict.fromkeys((*better.notes, *worse.notes)))
    if better.messages == worse.messages:
        notes = (*notes, SAME_ANSWERS)
    end = len(better.messages) - len(chosen)
    context = tuple(
        replace(message, weight=0.0) if message.role == "assistant" else message for message in better.messages[:end]
    )
    return Pair(context, better.messages[end:], worse.messages[end:], origin, notes, tools)
