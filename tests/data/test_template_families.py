"""Every family's rendered text and trained spans (between ⟦ and ⟧), against public fixtures, see family_texts.

Families that the tests of LLaMA-Factory render with their own tokenizers are compared with those in PUBLIC.
"""

from __future__ import annotations

import copy
from typing import Any

import jinja2
import pytest

from luthier.data.records import Message, RowError
from luthier.data.rendering import Renderer
from luthier.data.template_files import load_template, template_list, template_names
from luthier.foundation.errors import DataError
from tests.data.family_texts import (
    CALL,
    ELSEWHERE,
    FAMILIES,
    QUESTION,
    SYSTEM,
    TOOL,
    TOOL_TALK,
    TOOL_TEXTS,
    TURNS,
    WITH_TOOLS,
    WITHOUT_SYSTEM,
)


def marked(renderer: Renderer, messages: list[Message]) -> str:
    return "".join(f"⟦{piece.text}⟧" if piece.trained else piece.text for piece in renderer.pieces(messages))


def unmarked(text: str) -> str:
    return text.replace("⟦", "").replace("⟧", "")


def with_system(name: str, *messages: Message) -> list[Message]:
    return [*messages] if name in WITHOUT_SYSTEM else [SYSTEM, *messages]


def as_dicts(messages: list[Message]) -> list[dict[str, Any]]:
    return [{"role": message.role, "content": message.content} for message in messages]


def by_transformers(tokenizer: Any, name: str, messages: list[dict[str, Any]], **settings: Any) -> Any:
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = load_template(name).text
    return changed.apply_chat_template(messages, **{"tokenize": False, **settings})


def test_every_template_has_expectations() -> None:
    assert set(template_names()) == set(FAMILIES) | ELSEWHERE


@pytest.mark.parametrize("name", FAMILIES)
def test_text_and_trained_spans(byte_tokenizer, name: str) -> None:
    renderer, expected = Renderer(byte_tokenizer, name), FAMILIES[name]
    assert marked(renderer, TURNS[:2]) == expected.one
    assert marked(renderer, with_system(name, *TURNS)) == expected.two
    assert renderer.prompt_text(with_system(name, *TURNS, QUESTION)) == expected.prompt


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_renders_the_same(byte_tokenizer, name: str) -> None:
    messages, expected = as_dicts(with_system(name, *TURNS, QUESTION)), FAMILIES[name]
    assert by_transformers(byte_tokenizer, name, messages[:-1]) == unmarked(expected.two)
    assert by_transformers(byte_tokenizer, name, messages, add_generation_prompt=True) == expected.prompt


@pytest.mark.parametrize("name", sorted(WITHOUT_SYSTEM))
def test_families_without_system_prompt(byte_tokenizer, name: str) -> None:
    with pytest.raises(RowError, match=rf"\({name}\) refuses this conversation: .* knows no system prompt"):
        Renderer(byte_tokenizer, name).pieces([SYSTEM, *TURNS])


@pytest.mark.parametrize("name", ["baichuan2", "command-r", "gemma", "gemma3", "mistral", "mixtral", "vicuna"])
def test_families_whose_turns_alternate(byte_tokenizer, name: str) -> None:
    with pytest.raises(RowError, match="turns must alternate"):
        Renderer(byte_tokenizer, name).pieces([TURNS[0], TURNS[0], TURNS[1]])


@pytest.mark.parametrize("name", sorted(set(FAMILIES) - WITH_TOOLS))
@pytest.mark.parametrize("what", ["tools", "call", "result"])
def test_families_without_tools_refuse_them(byte_tokenizer, name: str, what: str) -> None:
    """Rather than leave out in silence what the row holds."""
    messages = as_dicts(TURNS[:2])
    if what == "call":
        messages[1]["tool_calls"] = [CALL]
    if what == "result":
        messages.append({"role": "tool", "content": "7"})
    with pytest.raises(jinja2.TemplateError, match="this template has no tools"):
        by_transformers(byte_tokenizer, name, messages, tools=[TOOL] if what == "tools" else None)


def test_unverified_templates_are_marked() -> None:
    assert [name for name in template_names() if not load_template(name).verified] == ["falcon", "xverse"]
    assert template_list().endswith("smollm2, vicuna, xverse (unverified), yi, zephyr")
    with pytest.raises(DataError, match=r"xverse \(unverified\)"):
        load_template("unheard-of")
    assert all(load_template(name).source for name in template_names())


# hiyouga/LlamaFactory, tests/data/test_template.py: its MESSAGES, and prompt_str and answer_str of the tests named below
LF_MESSAGES = [
    Message("user", "How are you"),
    Message("assistant", "I am fine!"),
    Message("user", "你好"),
    Message("assistant", "很高兴认识你！"),
]
LF_THOUGHTS = [
    LF_MESSAGES[0],
    Message("assistant", "<think>\nModel thought here\n</think>\n\nI am fine!"),
    LF_MESSAGES[2],
    Message("assistant", "<think>\n模型思考内容\n</think>\n\n很高兴认识你！"),
]
QWEN = (
    "<|im_start|>user\nHow are you<|im_end|>\n<|im_start|>assistant\nI am fine!<|im_end|>\n"
    "<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n"
)
NO_THOUGHT = "<think>\n\n</think>\n\n"
GEMMA = (
    "<s><start_of_turn>user\nHow are you<end_of_turn>\n<start_of_turn>model\nI am fine!<end_of_turn>\n"
    "<start_of_turn>user\n你好<end_of_turn>\n<start_of_turn>model\n"
)
PUBLIC = {
    # test_llama4_template, with this tokenizer's BOS
    "llama4": (
        LF_MESSAGES,
        "<s><|header_start|>user<|header_end|>\n\nHow are you<|eot|><|header_start|>assistant<|header_end|>\n\n"
        "I am fine!<|eot|><|header_start|>user<|header_end|>\n\n你好<|eot|><|header_start|>assistant<|header_end|>\n\n",
        "很高兴认识你！<|eot|>",
    ),
    # test_phi4_template
    "phi4": (
        LF_MESSAGES,
        "<|im_start|>user<|im_sep|>How are you<|im_end|><|im_start|>assistant<|im_sep|>I am fine!<|im_end|>"
        "<|im_start|>user<|im_sep|>你好<|im_end|><|im_start|>assistant<|im_sep|>",
        "很高兴认识你！<|im_end|>",
    ),
    # test_gemma2_template and test_gemma_template, with this tokenizer's BOS
    "gemma": (LF_MESSAGES, GEMMA, "很高兴认识你！<end_of_turn>"),
    "gemma3": (LF_MESSAGES, GEMMA, "很高兴认识你！<end_of_turn>"),
    # test_qwen2_5_template
    "qwen2.5": (
        LF_MESSAGES,
        "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n" + QWEN,
        "很高兴认识你！<|im_end|>",
    ),
    # test_qwen3_template, cot_messages False and True
    "qwen3": (LF_MESSAGES, QWEN, NO_THOUGHT + "很高兴认识你！<|im_end|>"),
    "qwen3 with thoughts": (LF_THOUGHTS, QWEN, "<think>\n模型思考内容\n</think>\n\n很高兴认识你！<|im_end|>"),
    # test_reasoning_encode_oneturn, enable_thinking False
    "qwen3-nothink": (LF_MESSAGES, QWEN + NO_THOUGHT, "很高兴认识你！<|im_end|>"),
    "qwen3-nothink with thoughts": (LF_THOUGHTS, QWEN + NO_THOUGHT, "很高兴认识你！<|im_end|>"),
}


@pytest.mark.parametrize("case", PUBLIC)
def test_prompt_and_answer_of_the_public_fixture(byte_tokenizer, case: str) -> None:
    renderer = Renderer(byte_tokenizer, case.split()[0])
    messages, prompt, answer = PUBLIC[case]
    pieces = renderer.pieces(messages)
    last = max(index for index, piece in enumerate(pieces) if piece.trained)
    assert "".join(piece.text for piece in pieces[:last]) == prompt == renderer.prompt_text(messages[:3])
    assert pieces[last].text == answer


def test_vicuna_of_the_public_fixture(byte_tokenizer) -> None:
    """deployradiant/pychatml, tests/test_vicuna_v1_1.py, EXPECTED_PROMPT, after this tokenizer's BOS."""
    answers = (
        "ChatGPT is an advanced language model developed by OpenAI. It's designed to understand and generate natural language, "
        "so it can converse with users, answer questions, and even assist with various tasks.",
        "Yes, but it can engage in broader conversations and more complex reasoning.",
    )
    messages = [
        Message("user", "What is ChatGPT?"),
        Message("assistant", answers[0]),
        Message("user", "So, it's like a super-advanced chatbot?"),
        Message("assistant", answers[1]),
    ]
    assert marked(Renderer(byte_tokenizer, "vicuna"), messages) == (
        "<s>A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, detailed, and "
        f"polite answers to the user's questions. USER: What is ChatGPT? ASSISTANT:⟦ {answers[0]}</s>⟧"
        f"USER: So, it's like a super-advanced chatbot? ASSISTANT:⟦ {answers[1]}</s>⟧"
    )


def test_thoughts_of_deepseek_r1(byte_tokenizer) -> None:
    """The prompt opens the thought, so the answer goes on within it; earlier ones are dropped, as in the family's own."""
    assert marked(Renderer(byte_tokenizer, "deepseek-r1"), LF_THOUGHTS) == (
        "<s><｜User｜>How are you<｜Assistant｜>⟦\n\nI am fine!<｜end▁of▁sentence｜>⟧<｜User｜>你好<｜Assistant｜><think>\n"
        "⟦模型思考内容\n</think>\n\n很高兴认识你！<｜end▁of▁sentence｜>⟧"
    )


@pytest.mark.parametrize("name", sorted(WITH_TOOLS))
def test_tool_calls_and_results(byte_tokenizer, name: str) -> None:
    """The text, and that calls are trained and results are not."""
    expected = TOOL_TEXTS[name]
    text = by_transformers(byte_tokenizer, name, TOOL_TALK, tools=[TOOL])
    assert text == unmarked(expected)
    encoded = by_transformers(
        byte_tokenizer,
        name,
        TOOL_TALK,
        tools=[TOOL],
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    trained = [i for i, on in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if on]
    spans = "".join(part.split("⟧")[0] for part in expected.split("⟦")[1:])
    assert byte_tokenizer.decode(trained, clean_up_tokenization_spaces=False) == spans
    # arguments that come as JSON text are written as they are
    as_text = copy.deepcopy(TOOL_TALK)
    as_text[2]["tool_calls"][0]["function"]["arguments"] = '{"a": 3, "b": 4}'
    assert by_transformers(byte_tokenizer, name, as_text, tools=[TOOL]) == text


def test_llama_makes_one_call_at_a_time(byte_tokenizer) -> None:
    talk = copy.deepcopy(TOOL_TALK)
    talk[2]["tool_calls"].append(CALL)
    with pytest.raises(jinja2.TemplateError, match="one tool call at a time"):
        by_transformers(byte_tokenizer, "llama3.1", talk, tools=[TOOL])


@pytest.mark.parametrize(("turn", "key"), [(2, "id"), (3, "tool_call_id")])
def test_mistral_wants_ids_of_nine_characters(byte_tokenizer, turn: int, key: str) -> None:
    talk = copy.deepcopy(TOOL_TALK)
    (talk[turn]["tool_calls"][0] if key == "id" else talk[turn])[key] = "call_1"
    with pytest.raises(jinja2.TemplateError, match="of 9 characters"):
        by_transformers(byte_tokenizer, "mistral", talk, tools=[TOOL])
