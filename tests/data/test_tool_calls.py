"""Conversations with tools: what rows may hold, what templates are given, which characters are trained."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path

import pytest

from luthier.config.data_section import DataEntry
from luthier.config.plugins import FORMATS
from luthier.data.detection import choose_format
from luthier.data.encoders import conversation
from luthier.data.locating import locate
from luthier.data.reading import read_files
from luthier.data.records import Conversation, Message, Origin, RawRow, RowError, ToolCall
from luthier.data.rendering import Renderer
from luthier.data.template_files import load_template

ORIGIN = Origin("f.json", 1)
AREA = {"name": "area", "description": "Area of a square.", "parameters": {"type": "object", "properties": {}}}
SHAREGPT = {
    "conversations": [
        {"from": "human", "value": "How big?"},
        {"from": "function_call", "value": '{"name": "area", "arguments": {"side": 7}}'},
        {"from": "observation", "value": '{"area": 49}'},
        {"from": "gpt", "value": "It is 49."},
    ],
    "tools": json.dumps([AREA]),
}
CALL = {"id": "c1", "type": "function", "function": {"name": "area", "arguments": '{"side": 7}'}}
OPENAI = {
    "messages": [
        {"role": "user", "content": "How big?"},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": '{"area": 49}', "tool_call_id": "c1"},
        {"role": "assistant", "content": "It is 49."},
    ],
    "tools": [{"type": "function", "function": AREA}],
}
SPANS = ['<tool_call>\n{"name": "area", "arguments": {"side": 7}}\n</tool_call><|im_end|>', "It is 49.<|im_end|>"]


def convert(row: dict, name: str = "auto") -> Conversation:
    raw = RawRow(row, ORIGIN)
    record = choose_format(DataEntry(path="f.json", format=name), [raw]).convert(raw)
    assert isinstance(record, Conversation)
    return record


def without_tags(tokenizer):
    """Qwen2.5's template as the family ships it, without generation tags: spans are found by prefixes."""
    changed = copy.deepcopy(tokenizer)
    changed.chat_template = re.sub(r"\{%-?\s*(end)?generation\s*-?%\}", "", load_template("qwen2.5").text)
    return Renderer(changed)


def test_both_layouts_say_the_same() -> None:
    sharegpt, openai = convert(SHAREGPT), convert(OPENAI)
    assert sharegpt.tools == openai.tools == ({"type": "function", "function": AREA},)
    assert sharegpt.messages[1] == Message("assistant", "", 1.0, (ToolCall("area", {"side": 7}),))
    assert openai.messages[1].tool_calls == (ToolCall("area", {"side": 7}, "c1"),)
    assert openai.messages[2].tool_call_id == "c1" and sharegpt.messages[2].role == "tool"


@pytest.mark.parametrize("row", [SHAREGPT, OPENAI], ids=["sharegpt", "openai"])
def test_calls_are_trained_like_answers(byte_tokenizer, row: dict) -> None:
    record = convert(row)
    pieces = Renderer(byte_tokenizer, "qwen2.5").pieces(record.messages, tools=record.tools)
    assert [piece.text for piece in pieces if piece.trained] == SPANS
    context = "".join(piece.text for piece in pieces if not piece.trained)
    assert '"description": "Area of a square."' in context and "<tool_response>" in context


def test_transformers_renders_the_same_tools(byte_tokenizer) -> None:
    record = convert(OPENAI)
    renderer = Renderer(byte_tokenizer, "qwen2.5")
    saved = copy.deepcopy(byte_tokenizer)
    saved.chat_template = renderer.chat_template
    theirs = saved.apply_chat_template(
        [message.as_dict() for message in record.messages],
        tools=list(record.tools),
        tokenize=True,
        return_dict=True,
        return_assistant_tokens_mask=True,
    )
    ids, weights = renderer.encode(record.messages, record.tools)
    assert ids == theirs["input_ids"][: len(ids)]
    assert [int(weight > 0) for weight in weights] == list(theirs["assistant_masks"])[: len(ids)]


def test_a_weight_reaches_a_calls_tokens(byte_tokenizer) -> None:
    row = copy.deepcopy(OPENAI)
    row["messages"][1]["weight"] = 0.5
    row["messages"][3]["train"] = False
    record = convert(row)
    pieces = Renderer(byte_tokenizer, "qwen2.5").pieces(record.messages, tools=record.tools)
    assert [(piece.text, piece.weight) for piece in pieces if piece.trained] == [(SPANS[0], 0.5)]


@pytest.mark.parametrize(("train_on", "spans"), [("assistant", SPANS), ("last", SPANS[1:])])
def test_train_on(byte_tokenizer, train_on: str, spans: list[str]) -> None:
    renderer = Renderer(byte_tokenizer, "qwen2.5")
    encode = conversation.build(conversation.Options(train_on=train_on), byte_tokenizer, renderer)
    sequence = encode([convert(SHAREGPT)]).examples[0].sequences[0]
    trained = [token for token, weight in zip(sequence.input_ids, sequence.weights, strict=True) if weight]
    assert byte_tokenizer.decode(trained) == "".join(spans)


def test_train_on_all(byte_tokenizer) -> None:
    talk = Conversation(
        (Message("user", "q"), Message("assistant", "a"), Message("user", "r"), Message("assistant", "b", 0.0)), ORIGIN
    )
    encode = conversation.build(
        conversation.Options(train_on="all"), byte_tokenizer, Renderer(byte_tokenizer, "chatml")
    )
    sequence = encode([talk]).examples[0].sequences[0]
    trained = [token for token, weight in zip(sequence.input_ids, sequence.weights, strict=True) if weight]
    text = byte_tokenizer.decode(trained)
    assert text.startswith("user\nq<|im_end|>") and "assistant\na<|im_end|>\n" in text and "b" not in text


def test_a_template_without_tools_is_told(byte_tokenizer) -> None:
    record = convert(SHAREGPT)
    renderer = Renderer(byte_tokenizer, "chatml")
    with pytest.raises(RowError, match=r"has tools, which the chat template \(chatml\) has no place for"):
        renderer.pieces(record.messages, tools=record.tools)
    with pytest.raises(RowError, match=r"calls the tool 'area', which the chat template \(chatml\) leaves out"):
        renderer.pieces(record.messages)
    encoded = conversation.build(conversation.Options(), byte_tokenizer, renderer)([record])
    assert not encoded.examples and encoded.rejected[0].values["messages"][1]["tool_calls"]


@pytest.mark.parametrize(
    ("template", "writes"),
    [
        ("qwen2.5", True),
        ("qwen3", True),
        ("qwen3-nothink", True),
        ("internlm2", True),
        ("llama4", True),
        ("llama3.1", False),
        ("mistral", False),
    ],
)
def test_text_beside_a_call_is_trained_or_refused(byte_tokenizer, template: str, writes: bool) -> None:
    row = copy.deepcopy(OPENAI)
    row["messages"][1]["tool_calls"][0]["id"] = row["messages"][2]["tool_call_id"] = "123456789"
    renderer = Renderer(byte_tokenizer, template)
    for content in ("", None, " \n"):  # nothing is lost
        row["messages"][1]["content"] = content
        record = convert(row)
        assert len([p for p in renderer.pieces(record.messages, tools=record.tools) if p.trained]) == 2
    for content in ("Let me see.", "<think>\nA square.\n</think>\n\nLet me see."):
        row["messages"][1]["content"] = content
        record = convert(row)
        for messages, prompt in ((record.messages, False), (record.messages[:3], True)):
            if writes:
                pieces = renderer.pieces(messages, prompt, record.tools)
                assert "Let me see." in next(piece.text for piece in pieces if piece.trained)
                continue
            told = rf"text beside its calls, which the chat template \({template}\) leaves out"
            with pytest.raises(RowError, match=told):
                renderer.pieces(messages, prompt, record.tools)


BAD = [
    ({**SHAREGPT, "tools": "[{]"}, "the field 'tools' is broken JSON (Expecting property name"),
    ({**SHAREGPT, "tools": [5]}, "the field 'tools'[0] is int 5, not a tool definition"),
    ({**SHAREGPT, "tools": 5}, "the field 'tools' is int 5, not a list of tool definitions"),
    ({**SHAREGPT, "tools": [{"description": "d"}]}, "names no function; give it a 'name' (fields found: description)"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_tools_that_cannot_be_used(row: dict, message: str) -> None:
    with pytest.raises(RowError) as caught:
        convert(row)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("area(7)", "conversations[1].value is broken JSON"),
        ('{"arguments": {}}', "conversations[1].value[0] is dict"),
        ('{"name": "area", "arguments": [7]}', "arguments is list [7], not an object of arguments by name"),
        ('{"name": "area", "arguments": "{"}', "arguments is broken JSON"),
        ("[" * 100_000, "broken JSON"),
    ],
)
def test_calls_that_cannot_be_used(value: str, message: str) -> None:
    row = copy.deepcopy(SHAREGPT)
    row["conversations"][1]["value"] = value
    with pytest.raises(RowError) as caught:
        convert(row)
    assert message in str(caught.value)


def test_a_call_that_nothing_answers() -> None:
    row = copy.deepcopy(SHAREGPT)
    row["conversations"][2] = {"from": "human", "value": "Well?"}
    with pytest.raises(RowError, match="follows a turn of assistant that calls tools; a tool's result must follow"):
        convert(row)
    row["conversations"] = SHAREGPT["conversations"][:3]
    assert [message.role for message in convert(row).messages] == ["user", "assistant"]


def test_tags_rename_keys_and_roles() -> None:
    module = FORMATS.load("sharegpt")
    tags = {"role_tag": "who", "content_tag": "says", "user_tag": "me", "function_tag": "do", "assistant_tag": "bot"}
    options = module.Options(tags=tags)
    row = {
        "conversations": [
            {"who": "me", "says": "q"},
            {"who": "do", "says": '{"name": "f"}'},
            {"who": "tool", "says": "r"},
            {"who": "bot", "says": "a"},
        ]
    }
    assert module.detect(row, options)
    record = module.build(options)(RawRow(row, ORIGIN))
    assert [message.role for message in record.messages] == ["user", "assistant", "tool", "assistant"]
    with pytest.raises(RowError, match="unknown who 'gpt'"):
        module.build(options)(RawRow({"conversations": [{"who": "gpt", "says": "x"}]}, ORIGIN))
    with pytest.raises(ValueError, match=r"there is no 'user' \(did you mean user_tag\?\)"):
        module.Options(tags={"user": "me"})


def test_real_tool_conversations(shared_data: Path, byte_tokenizer) -> None:
    """All 300 rows: every call and answer is trained, once, with tags and by prefixes alike."""
    rows = read_files(locate(DataEntry(path=str(shared_data / "conversation" / "glaive_toolcall_en_demo.json"))))
    tagged, plain = Renderer(byte_tokenizer, "qwen2.5"), without_tags(byte_tokenizer)
    calls = 0
    for row in rows:
        record = convert(dict(row.values))
        answers = [message for message in record.messages if message.role == "assistant"]
        spans = [piece.text for piece in tagged.pieces(record.messages, tools=record.tools) if piece.trained]
        assert len(spans) == len(answers)
        for message, span in zip(answers, spans, strict=True):
            assert message.content in span and span.endswith("<|im_end|>")
            assert all(json.dumps(call.arguments, ensure_ascii=False) in span for call in message.tool_calls)
            calls += len(message.tool_calls)
        assert [p.text for p in plain.pieces(record.messages, tools=record.tools) if p.trained] == spans
    assert calls == sum(turn["from"] == "function_call" for row in rows for turn in row.values["conversations"])
