"""Exactly which characters are trained, for six conversations over templates whose strings are in family_texts."""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest

from luthier.data.records import Message
from luthier.data.rendering import Renderer
from luthier.data.template_files import template_names
from tests.data.family_texts import CONVERSATIONS, EXPECTED

CASES = [(template, name) for template in EXPECTED if template != "auto" for name in CONVERSATIONS]


def marked(renderer: Renderer, tokenizer, messages: list[Message]) -> str:
    """The trained example decoded, trained tokens between ⟦ and ⟧."""
    ids, weights = renderer.encode(messages)
    text, position = "", 0
    for trained, group in groupby(weights, lambda weight: weight > 0):
        count = len(list(group))
        part = tokenizer.decode(ids[position : position + count], clean_up_tokenization_spaces=False)
        text += f"⟦{part}⟧" if trained else part
        position += count
    return text


def test_expectations_are_of_templates() -> None:
    """That every template has some is asserted in test_template_families."""
    assert set(EXPECTED) - {"auto"} <= set(template_names())


@pytest.mark.parametrize(("template", "name"), CASES)
def test_trained_characters(byte_tokenizer, template: str, name: str) -> None:
    assert marked(Renderer(byte_tokenizer, template), byte_tokenizer, CONVERSATIONS[name]) == EXPECTED[template][name]


@pytest.mark.parametrize(("template", "name"), CASES)
def test_trained_characters_tokenized_jointly(metaspace_tokenizer, template: str, name: str) -> None:
    """The pieces' text is the same; which tokens are trained is told by the offsets."""
    renderer = Renderer(metaspace_tokenizer, template)
    assert not renderer.splits
    ids, weights = renderer.encode(CONVERSATIONS[name])
    pieces = renderer.pieces(CONVERSATIONS[name])
    shown = "".join(f"⟦{piece.text}⟧" if piece.trained else piece.text for piece in pieces)
    assert shown.startswith(EXPECTED[template][name])
    trained = [token for token, weight in zip(ids, weights, strict=True) if weight > 0]
    # what the trained tokens say is what stands between the marks, up to spaces, which metaspace decoding normalizes
    wanted = "".join(re.findall(r"⟦(.*?)⟧", EXPECTED[template][name], re.S))
    if "Chinese" not in name:  # the tiny vocabulary has no such letters
        assert metaspace_tokenizer.decode(trained).replace(" ", "") == wanted.replace(" ", "")
    ends = [i for i, (a, b) in enumerate(zip(weights, [*weights[1:], 0.0], strict=True)) if a > 0 and b == 0]
    assert ends and all(ids[end] in renderer.stop_token_ids for end in ends)


@pytest.mark.network
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_trained_characters_of_the_default_model(smollm2_folder: Path, name: str) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert marked(Renderer(tokenizer), tokenizer, CONVERSATIONS[name]) == EXPECTED["auto"][name]


def test_weights_reach_the_tokens(byte_tokenizer) -> None:
    _, weights = Renderer(byte_tokenizer, "chatml").encode(CONVERSATIONS["weight 0 last"])
    assert set(weights) == {0.0, 0.5}


PROMPT = [*CONVERSATIONS["system, two turns, spaces"], Message("user", "Another question")]
PROMPTS = {
    # llama.cpp, tests/test-chat-template.cpp, expected_output of teknium/OpenHermes-2.5-Mistral-7B
    "chatml": (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n"
        "Hi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n<|im_start|>assistant\n   I am an assistant   <|im_end|>\n"
        "<|im_start|>user\nAnother question<|im_end|>\n<|im_start|>assistant\n"
    ),
    # the same file, Llama-3 (bos_token is empty there)
    "llama3": (
        "<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|><|start_header_id|>user"
        "<|end_header_id|>\n\nHello<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
        "I am an assistant<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnother question<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}


@pytest.mark.parametrize("template", PROMPTS)
def test_prompt_of_the_public_fixture(byte_tokenizer, template: str) -> None:
    assert Renderer(byte_tokenizer, template).prompt_text(PROMPT) == PROMPTS[template]
