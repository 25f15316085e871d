"""Exactly which characters are trained, for six conversations over every template.

Trained spans stand between ⟦ and ⟧. The strings follow the families' own published templates and fixtures, never our code:

- ChatML: the template and its expected output in llama.cpp, tests/test-chat-template.cpp, case
  "teknium/OpenHermes-2.5-Mistral-7B" (nothing is trimmed).
- Llama 2: `chat_template` in tokenizer_config.json of meta-llama/Llama-2-7b-chat-hf (contents are stripped, the answer
  stands between two spaces, every question starts with BOS).
- Llama 3: `chat_template` in tokenizer_config.json of meta-llama/Meta-Llama-3-8B-Instruct, quoted with its expected output
  in the tests of llama.cpp (contents are trimmed).
- Qwen2.5: `chat_template` in tokenizer_config.json of Qwen/Qwen2.5-7B-Instruct (ChatML with a default system prompt).
- Alpaca: PROMPT_DICT["prompt_no_input"] and `targets` in train.py of tatsu-lab/stanford_alpaca (the answer follows
  "### Response:" at once and ends in EOS). It has one turn and no system prompt; that further turns repeat the headings
  and a system prompt replaces the header is our choice.
- SmolLM2: the chat template inside the default model's GGUF, as the model's folder gives it.
"""

from __future__ import annotations

import re
from itertools import groupby
from pathlib import Path

import pytest

from luthier.data.records import Message
from luthier.data.rendering import Renderer
from luthier.data.template_files import template_names

SYSTEM = Message("system", "You are a helpful assistant")
CONVERSATIONS: dict[str, list[Message]] = {
    "one turn": [Message("user", "Hello"), Message("assistant", "Hi there")],
    "system, two turns, spaces": [
        SYSTEM,
        Message("user", "Hello"),
        Message("assistant", "Hi there"),
        Message("user", "Who are you"),
        Message("assistant", "   I am an assistant   "),
    ],
    "weight 0 first": [
        Message("user", "Hello"),
        Message("assistant", "Hi there", 0.0),
        Message("user", "Who are you"),
        Message("assistant", "Luthier"),
    ],
    "weight 0 last": [
        Message("user", "Hello"),
        Message("assistant", "Hi there", 0.5),
        Message("user", "Who are you"),
        Message("assistant", "Luthier", 0.0),
    ],
    "Chinese and emoji": [Message("user", "讲个笑话 🙂"), Message("assistant", "好的，👨‍👩‍👧 é\n第二行")],
    "line breaks and jinja": [
        Message("user", "\nline one\n\nline two\n"),
        Message("assistant", "\n  {{ 1 + 1 }} {% if %}\n\n"),
    ],
}

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
SMOL = "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"

CHATML = {
    "one turn": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧",
    "system, two turns, spaces": (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nHello<|im_end|>\n"
        "<|im_start|>assistant\n⟦Hi there<|im_end|>⟧\n<|im_start|>user\nWho are you<|im_end|>\n"
        "<|im_start|>assistant\n⟦   I am an assistant   <|im_end|>⟧"
    ),
    "weight 0 first": (
        "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\nHi there<|im_end|>\n<|im_start|>user\nWho are you<|im_end|>\n"
        "<|im_start|>assistant\n⟦Luthier<|im_end|>⟧"
    ),
    "weight 0 last": "<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n⟦Hi there<|im_end|>⟧",
    "Chinese and emoji": (
        "<|im_start|>user\n讲个笑话 🙂<|im_end|>\n<|im_start|>assistant\n⟦好的，👨‍👩‍👧 é\n第二行<|im_end|>⟧"
    ),
    "line breaks and jinja": (
        "<|im_start|>user\n\nline one\n\nline two\n<|im_end|>\n<|im_start|>assistant\n⟦\n  {{ 1 + 1 }} {% if %}\n\n<|im_end|>⟧"
    ),
}


def with_default_system(prompt: str) -> dict[str, str]:
    return {name: text if "system" in name else prompt + text for name, text in CHATML.items()}


EXPECTED: dict[str, dict[str, str]] = {
    "chatml": CHATML,
    "qwen2.5": with_default_system(QWEN),
    "auto": with_default_system(SMOL),
    "llama2": {
        "one turn": "<s>[INST] Hello [/INST]⟦ Hi there </s>⟧",
        "system, two turns, spaces": (
            "<s>[INST] <<SYS>>\nYou are a helpful assistant\n<</SYS>>\n\nHello [/INST]⟦ Hi there </s>⟧"
            "<s>[INST] Who are you [/INST]⟦ I am an assistant </s>⟧"
        ),
        "weight 0 first": "<s>[INST] Hello [/INST] Hi there </s><s>[INST] Who are you [/INST]⟦ Luthier </s>⟧",
        "weight 0 last": "<s>[INST] Hello [/INST]⟦ Hi there </s>⟧",
        "Chinese and emoji": "<s>[INST] 讲个笑话 🙂 [/INST]⟦ 好的，👨‍👩‍👧 é\n第二行 </s>⟧",
        "line breaks and jinja": "<s>[INST] line one\n\nline two [/INST]⟦ {{ 1 + 1 }} {% if %} </s>⟧",
    },
    "llama3": {
        "one turn": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
        ),
        "system, two turns, spaces": (
            "<s><|start_header_id|>system<|end_header_id|>\n\nYou are a helpful assistant<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦I am an assistant<|eot_id|>⟧"
        ),
        "weight 0 first": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nHi there<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\nWho are you<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Luthier<|eot_id|>⟧"
        ),
        "weight 0 last": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nHello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦Hi there<|eot_id|>⟧"
        ),
        "Chinese and emoji": (
            "<s><|start_header_id|>user<|end_header_id|>\n\n讲个笑话 🙂<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦好的，👨‍👩‍👧 é\n第二行<|eot_id|>⟧"
        ),
        "line breaks and jinja": (
            "<s><|start_header_id|>user<|end_header_id|>\n\nline one\n\nline two<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n⟦{{ 1 + 1 }} {% if %}<|eot_id|>⟧"
        ),
    },
    "alpaca": {
        "one turn": ALPACA + "### Instruction:\nHello\n\n### Response:⟦Hi there</s>⟧",
        "system, two turns, spaces": (
            "You are a helpful assistant\n\n### Instruction:\nHello\n\n### Response:⟦Hi there</s>⟧\n\n"
            "### Instruction:\nWho are you\n\n### Response:⟦   I am an assistant   </s>⟧"
        ),
        "weight 0 first": (
            ALPACA + "### Instruction:\nHello\n\n### Response:Hi there</s>\n\n"
            "### Instruction:\nWho are you\n\n### Response:⟦Luthier</s>⟧"
        ),
        "weight 0 last": ALPACA + "### Instruction:\nHello\n\n### Response:⟦Hi there</s>⟧",
        "Chinese and emoji": ALPACA + "### Instruction:\n讲个笑话 🙂\n\n### Response:⟦好的，👨‍👩‍👧 é\n第二行</s>⟧",
        "line breaks and jinja": (
            ALPACA + "### Instruction:\n\nline one\n\nline two\n\n\n### Response:⟦\n  {{ 1 + 1 }} {% if %}\n\n</s>⟧"
        ),
    },
}
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
