"""Exactly which text is trained, with which weight, over every template: several turns, weights, tools, what is learnt of them.

The expected texts are the public fixtures of family_texts; the tokens are those the encoder makes.
"""

from __future__ import annotations

import copy
import re
from itertools import groupby
from typing import Any

import pytest

from luthier.data.encoders import conversation
from luthier.data.examples import TokenSequence
from luthier.data.records import Conversation, Message, Origin, ToolCall
from luthier.data.rendering import Renderer
from luthier.data.template_files import load_template, template_names
from tests.data.family_texts import (
    EXPECTED,
    FAMILIES,
    LAST_IS_SPECIAL,
    SYSTEM,
    TOOL,
    TOOL_TEXTS,
    TURNS,
    WITH_TOOLS,
    WITHOUT_SYSTEM,
)

TWO = {name: expected.two for name, expected in FAMILIES.items()}
TWO |= {name: EXPECTED[name]["system, two turns, spaces"] for name in set(template_names()) - set(FAMILIES)}
Spans = list[tuple[str, float]]


def spans_of(expected: str, weights: tuple[float, ...]) -> Spans:
    """An expected text in stretches of one weight, up to the last trained one."""
    stretches = re.split("[⟦⟧]", expected)
    answers = iter(weights)
    found = [(text, next(answers) if index % 2 else 0.0) for index, text in enumerate(stretches)]
    while not found[-1][1]:
        found.pop()
    return joined(found)


def joined(spans: Spans) -> Spans:
    return [
        ("".join(text for text, _ in group), weight)
        for weight, group in ((weight, list(group)) for weight, group in groupby(spans, lambda span: span[1]))
        if any(text for text, _ in group)
    ]


def encoded(tokenizer: Any, renderer: Renderer, talk: Conversation, **options: Any) -> TokenSequence:
    build = conversation.build(conversation.Options(**options), tokenizer, renderer)
    (example,) = build([talk]).examples
    return example.sequences[0]


def decoded(tokenizer: Any, sequence: TokenSequence) -> Spans:
    found, position = [], 0
    for weight, group in groupby(sequence.weights):
        count = len(list(group))
        ids = list(sequence.input_ids[position : position + count])
        found.append((tokenizer.decode(ids, clean_up_tokenization_spaces=False), weight))
        position += count
    return found


def two_turns(name: str, weights: tuple[float, float]) -> Conversation:
    system = () if name in WITHOUT_SYSTEM else (SYSTEM,)
    answers = iter(weights)
    turns = [Message(turn.role, turn.content, next(answers)) if turn.role == "assistant" else turn for turn in TURNS]
    return Conversation((*system, *turns), Origin("f.json", 1))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize("name", template_names())
def test_weighted_turns(byte_tokenizer, name: str, weights: tuple[float, float]) -> None:
    renderer = Renderer(byte_tokenizer, name)
    sequence = encoded(byte_tokenizer, renderer, two_turns(name, weights))
    assert decoded(byte_tokenizer, sequence) == spans_of(TWO[name], weights)


def without_tags(tokenizer: Any, name: str) -> Any:
    """A tokenizer with a family's template as model folders bring it: the turns are told apart by what each adds."""
    own = copy.deepcopy(tokenizer)
    own.chat_template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", load_template(name).text)
    return own


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 0.5)], ids=str)
@pytest.mark.parametrize("name", sorted(set(template_names()) - LAST_IS_SPECIAL))
def test_weighted_turns_of_a_tokenizers_own_template(byte_tokenizer, name: str, weights: tuple[float, float]) -> None:
    own = without_tags(byte_tokenizer, name)
    sequence = encoded(own, Renderer(own), two_turns(name, weights))
    assert decoded(own, sequence) == spans_of(TWO[name], weights)


@pytest.mark.parametrize("name", sorted(LAST_IS_SPECIAL))
def test_turns_that_cannot_be_told_apart_are_refused(byte_tokenizer, name: str) -> None:
    own = without_tags(byte_tokenizer, name)
    build = conversation.build(conversation.Options(), own, Renderer(own))
    (rejected,) = build([two_turns(name, (1.0, 1.0))]).rejected
    assert "renders turn 3 differently in a longer conversation" in rejected.reason


@pytest.mark.parametrize("name", template_names())
def test_only_the_last_turn(byte_tokenizer, name: str) -> None:
    renderer = Renderer(byte_tokenizer, name)
    sequence = encoded(byte_tokenizer, renderer, two_turns(name, (1.0, 0.5)), train_on="last")
    assert decoded(byte_tokenizer, sequence) == spans_of(TWO[name], (0.0, 0.5))


@pytest.mark.parametrize("name", template_names())
def test_all_tokens_but_the_first(byte_tokenizer, name: str) -> None:
    renderer = Renderer(byte_tokenizer, name)
    talk = two_turns(name, (1.0, 1.0))
    sequence = encoded(byte_tokenizer, renderer, talk, train_on="all")
    assert set(sequence.weights[1:]) == {1.0} and sequence.weights[0] == 0.0
    assert byte_tokenizer.decode(sequence.input_ids) == "".join(piece.text for piece in renderer.pieces(talk.messages))


@pytest.mark.parametrize("name", template_names())
@pytest.mark.parametrize("tokens", ["byte_tokenizer", "metaspace_tokenizer"])
def test_every_trained_turn_ends_in_a_trained_stop_token(tokens: str, name: str, request) -> None:
    """All families do, so a model learns to stop after any answer."""
    tokenizer = request.getfixturevalue(tokens)
    renderer = Renderer(tokenizer, name)
    sequence = encoded(tokenizer, renderer, two_turns(name, (1.0, 1.0)))
    following = [*sequence.weights[1:], 0.0]
    ends = [index for index, weight in enumerate(sequence.weights) if weight > 0 and not following[index]]
    assert len(ends) == 2 and all(sequence.input_ids[end] in renderer.stop_token_ids for end in ends)


def tool_talk(weights: tuple[float, float]) -> Conversation:
    call = ToolCall("add", {"a": 3, "b": 4}, "call00001")
    turns = (
        Message("system", "Be brief."),
        Message("user", "3 + 4?"),
        Message("assistant", "", weights[0], (call,)),
        Message("tool", "7", name="add", tool_call_id="call00001"),
        Message("assistant", "Seven.", weights[1]),
    )
    return Conversation(turns, Origin("f.json", 1), tools=(TOOL,))


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.5, 2.0), (0.0, 1.0), (1.0, 0.0)], ids=str)
@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
def test_weighted_calls(byte_tokenizer, name: str, weights: tuple[float, float]) -> None:
    sequence = encoded(byte_tokenizer, Renderer(byte_tokenizer, name), tool_talk(weights))
    assert decoded(byte_tokenizer, sequence) == spans_of(TOOL_TEXTS[name], weights)


@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
def test_only_the_answer_after_a_call(byte_tokenizer, name: str) -> None:
    sequence = encoded(byte_tokenizer, Renderer(byte_tokenizer, name), tool_talk((1.0, 1.0)), train_on="last")
    assert decoded(byte_tokenizer, sequence) == spans_of(TOOL_TEXTS[name], (0.0, 1.0))
