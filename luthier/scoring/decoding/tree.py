"""Which tokens of the prompts are computed once for several answers, and in which order answers are made.

Answers stand depth first over the trie of prompts, so those that share a beginning are consecutive at any time, and one
product of theirs with its keys serves them all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.sharing import shared
from luthier.scoring.decoding.store import Beginning

LEAST_SAVED = 64
"""Tokens. A beginning of its own costs each step as much as computing about one token, in every layer, as long as answers
go on with it; its tokens are saved once for each of them."""


@dataclass(slots=True)
class Planned:
    """An answer to be made.

    Args:
        prompt: its place among the prompts. number: which of the answers to it.
        beginning: what it goes on with, computed for others too; None: nothing.
        own: the prompt's tokens after that.
    """

    prompt: int
    number: int
    beginning: Beginning | None
    own: tuple[int, ...]


@dataclass(slots=True)
class Plan:
    """All answers in the order they are made, and the tokens of every beginning."""

    answers: list[Planned]
    tokens: dict[Beginning, tuple[int, ...]]


def plan(prompts: Sequence[Sequence[int]], answers_each: int, least_saved: int = LEAST_SAVED) -> Plan:
    """The answers to prompts, those to the longest first, and what of the prompts they share.

    Args:
        prompts: token ids, none empty.
        answers_each: to one prompt.
    """
    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    ids = [tuple(prompts[place]) for place in order]
    parts = shared(ids, least_saved)
    has_children = {part.parent for part in parts}
    users = [len(part.ends) * answers_each for part in parts]
    for index, part in reversed(list(enumerate(parts))):
        if part.parent is not None:
            users[part.parent] += users[index]
    made: dict[int, Beginning] = {}
    found = Plan([], {})
    for index, part in enumerate(parts):
        tokens = ids[part.sequence][part.start : part.end]
        before = made[part.parent] if part.parent is not None else None
        if index not in has_children and users[index] == 1:
            found.answers.append(Planned(order[part.ends[0]], 0, before, tokens))
            continue
        made[index] = Beginning(before, len(tokens), users[index])
        found.tokens[made[index]] = tokens
        found.answers += [
            Planned(order[end], number, made[index], ()) for end in part.ends for number in range(answers_each)
        ]
    return found
