"""Every format: how it is found out, what it makes of a row, and what it says of rows it can't use."""

from __future__ import annotations

import json

import pytest

from luthier.config.data_section import DataEntry
from luthier.config.plugins import FORMATS
from luthier.data.detection import choose_format
from luthier.data.layouts import OPENAI
from luthier.data.records import Conversation, Document, Message, Origin, RawRow, RowError
from luthier.data.turns import EMPTY_ANSWER, TRAILING_USER, turns_of
from luthier.foundation.errors import DataError

ORIGIN = Origin("f.json", 7)
USER, ANSWER = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
HUMAN, GPT = {"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}
CALL = {"name": "f", "arguments": {"x": 1}}


def choose(*rows: dict, **entry) -> object:
    return choose_format(DataEntry(path="f.json", **entry), [RawRow(row, ORIGIN) for row in rows])


def convert(row: dict, **entry):
    return choose(row, **entry).convert(RawRow(row, ORIGIN))


def turns(row: dict, **entry) -> list[tuple[str, str, float]]:
    record = convert(row, **entry)
    assert isinstance(record, Conversation) and record.origin == ORIGIN
    return [(message.role, message.content, message.weight) for message in record.messages]


def test_alpaca() -> None:
    assert turns({"instruction": "i", "input": "", "output": "o"}) == [("user", "i", 1.0), ("assistant", "o", 1.0)]
    row = {"instruction": "i", "input": "x", "output": " o\n", "system": "s", "history": [["q1", "a1"], ["q2", "a2"]]}
    assert turns(row) == [
        ("system", "s", 1.0),
        ("user", "q1", 1.0),
        ("assistant", "a1", 1.0),
        ("user", "q2", 1.0),
        ("assistant", "a2", 1.0),
        ("user", "i\nx", 1.0),
        ("assistant", " o\n", 1.0),
    ]
    nulls = {"instruction": "i", "input": None, "output": "o", "system": None, "history": None, "tools": "[]"}
    assert turns(nulls) == [("user", "i", 1.0), ("assistant", "o", 1.0)]


def test_sharegpt() -> None:
    row = {"conversations": [{"from": "system", "value": "s"}, HUMAN, GPT, HUMAN, {**GPT, "weight": 0}]}
    assert [turn[2] for turn in turns(row)] == [1.0, 1.0, 1.0, 1.0, 0.0]
    assert turns({"conversations": [HUMAN, GPT], "system": "s"})[0] == ("system", "s", 1.0)
    assert [turn[0] for turn in turns({"conversations": [{"from": "user", "value": "q"}, GPT]})] == [
        "user",
        "assistant",
    ]


def test_openai() -> None:
    assert turns({"messages": [USER, {**ANSWER, "weight": 0.25}]})[1] == ("assistant", "a", 0.25)
    assert turns({"messages": [USER, {**ANSWER, "train": False}]})[1] == ("assistant", "a", 0.0)
    assert turns({"messages": [USER, {**ANSWER, "train": True, "weight": None}]})[1] == ("assistant", "a", 1.0)
    for key in ("training", "loss"):
        again = [USER, {**ANSWER, key: False}, {**USER, key: False}, {**ANSWER, key: True}]
        assert [weight for _, _, weight in turns({"messages": again})] == [1.0, 0.0, 0.0, 1.0]
    assert turns({"messages": [USER, {**ANSWER, "loss": True, "weight": 0.5}]})[1] == ("assistant", "a", 0.5)
    assert turns({"messages": [USER, {**ANSWER, "loss_scale": None, "train_detail": []}]})[1] == ("assistant", "a", 1.0)
    assert turns({"messages": [{"role": "developer", "content": "s"}, USER, ANSWER]})[0] == ("system", "s", 1.0)
    parts = [{"type": "text", "text": "q1 "}, {"type": "text", "text": "q2"}]
    assert turns({"messages": [{"role": "user", "content": parts}, ANSWER]})[0] == ("user", "q1 q2", 1.0)
    assert turns({"conversations": [USER, ANSWER]}) == [("user", "q", 1.0), ("assistant", "a", 1.0)]


def test_text() -> None:
    assert convert({"text": " x\n", "id": 3}) == Document(" x\n", ORIGIN)
    assert convert({"whatever": "x"}) == Document("x", ORIGIN)


def test_the_reason_is_told() -> None:
    chosen = choose({"instruction": "i", "output": "o", "text": "all of it"})
    assert (chosen.name, chosen.reason) == ("alpaca", "has the columns instruction and output")
    assert (
        choose({"messages": []}, {"messages": [USER, ANSWER]}).reason
        == "the column messages holds turns with role and content"
    )
    assert choose({"body": "x"}).reason == "body is the only column, and holds text"
    assert choose({"text": "x"}, format="text").reason == "named in the config"


def test_columns_map_a_formats_names() -> None:
    row = {"question": "i", "answer": "o", "sys": "s"}
    mapping = {"instruction": "question", "output": "answer", "system": "sys"}
    assert turns(row, columns=mapping) == turns(row, columns=mapping, format="alpaca")
    assert turns(row, columns=mapping)[0] == ("system", "s", 1.0)
    assert convert({"body": "x", "title": "t"}, columns={"text": "body"}) == Document("x", ORIGIN)
    assert turns({"chat": [HUMAN, GPT], "x": 1}, columns={"conversations": "chat"})[0] == ("user", "q", 1.0)


def test_a_rows_own_system_prompt_wins() -> None:
    assert turns({"instruction": "i", "output": "o"}, system="S")[0] == ("system", "S", 1.0)
    assert turns({"instruction": "i", "output": "o", "system": "s"}, system="S")[0] == ("system", "s", 1.0)
    assert turns({"messages": [{"role": "system", "content": "s"}, USER, ANSWER]}, system="S")[0][1] == "s"


def test_what_is_mended_is_noted() -> None:
    record = convert({"messages": [USER, ANSWER, USER]})
    assert len(record.messages) == 2 and record.notes == (TRAILING_USER,)
    record = convert({"messages": [USER, {**ANSWER, "content": " \n"}, USER, ANSWER]})
    assert record.messages[1] == Message("assistant", " \n", 0.0) and record.notes == (EMPTY_ANSWER,)


BAD_ROWS = [
    (
        {"instruction": "i"},
        "alpaca",
        "lacks the field 'output' (the format alpaca's output); fields found: instruction",
    ),
    ({"instruction": 5, "output": "o"}, "alpaca", "the field 'instruction' is int 5, not text"),
    ({"instruction": None, "output": "o"}, "alpaca", "the field 'instruction' is NoneType None, not text"),
    ({"instruction": "i", "output": ["o"]}, "alpaca", "the field 'output' is list ['o'], not text"),
    ({"instruction": "", "input": "", "output": "o"}, "alpaca", "turn 1 (user) is empty"),
    (
        {"instruction": "i", "output": "o", "history": "x"},
        "alpaca",
        "'history' is str, not a list of [question, answer] pairs",
    ),
    ({"instruction": "i", "output": "o", "history": [["q"]]}, "alpaca", "history[0] is ['q'], not a pair"),
    ({"instruction": "i", "output": "o", "history": [["q", 1]]}, "alpaca", "history[0][1] is int 1, not text"),
    ({"instruction": "i", "output": "o", "tools": "[{}]"}, "alpaca", "the field 'tools'[0] names no function"),
    ({"instruction": "i", "output": "x\ud800"}, "alpaca", "half of a surrogate pair (U+D800 at character 1)"),
    ({"conversations": "x"}, "sharegpt", "the field 'conversations' is str, not a list of turns"),
    ({"conversations": []}, "sharegpt", "has no assistant turn to learn from (found: no turns)"),
    ({"conversations": [HUMAN]}, "sharegpt", "has no assistant turn to learn from (found: user)"),
    ({"conversations": [HUMAN, HUMAN, GPT]}, "sharegpt", "turn 2 is of user and follows a turn of user"),
    ({"conversations": [GPT, HUMAN, GPT]}, "sharegpt", "turn 1 is of assistant and comes first"),
    ({"conversations": [HUMAN, GPT, GPT]}, "sharegpt", "turn 3 is of assistant and follows a turn of assistant"),
    (
        {"conversations": [HUMAN, {"from": "bot", "value": "a"}]},
        "sharegpt",
        "conversations[1] has the unknown from 'bot'; known: human",
    ),
    ({"conversations": [HUMAN, {"from": "gpt"}]}, "sharegpt", "conversations[1] lacks 'value'; fields found: from"),
    ({"conversations": [HUMAN, "a"]}, "sharegpt", "conversations[1] is str, not an object"),
    (
        {"conversations": [HUMAN, {"from": "function_call", "value": "{}"}]},
        "sharegpt",
        "conversations[1].value[0] is dict {}, not a call",
    ),
    ({"conversations": [HUMAN, {"from": "function_call"}]}, "sharegpt", "conversations[1] lacks 'value'"),
    (
        {"conversations": [HUMAN, {"from": "function_call", "value": "x", "tool_calls": [CALL]}]},
        "sharegpt",
        "has calls in 'value' and in 'tool_calls'; one of them must go",
    ),
    (
        {"conversations": [HUMAN, {"from": "function_call", "tool_calls": [CALL], "reasoning_content": "hm"}]},
        "sharegpt",
        "has its thought in 'reasoning_content'",
    ),
    ({"conversations": [HUMAN, GPT], "tools": "[{"}, "sharegpt", "the field 'tools' is broken JSON"),
    ({"conversations": [HUMAN, {"from": ["gpt"], "value": "a"}]}, "sharegpt", "unknown from ['gpt']"),
    (
        {"messages": [{"role": "system", "content": "s"}]},
        "openai",
        "has no assistant turn to learn from (found: no turns)",
    ),
    ({"messages": [USER, {"role": "system", "content": "s"}, ANSWER]}, "openai", "turn 2 is of system"),
    ({"messages": [{"role": "system", "content": "s"}, USER, USER, ANSWER]}, "openai", "turn 3 is of user"),
    ({"messages": [{"role": "user", "content": " "}, ANSWER]}, "openai", "turn 1 (user) is empty"),
    ({"messages": [USER, {**ANSWER, "content": None}]}, "openai", "messages[1].content is NoneType None, not text"),
    ({"messages": [USER, {**ANSWER, "tool_calls": [{}]}]}, "openai", "messages[1].tool_calls[0] is dict {}"),
    (
        {"messages": [USER, {"role": "tool", "content": "x"}, ANSWER]},
        "openai",
        "turn 2 is of tool and follows a turn of user",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]},
        "openai",
        "messages[0].content[0] is a part of type 'image_url'",
    ),
    (
        {"messages": [USER, {**ANSWER, "weight": -1}]},
        "openai",
        "messages[1].weight is -1; it must be a number from 0 to 10,000",
    ),
    ({"messages": [USER, {**ANSWER, "weight": True}]}, "openai", "messages[1].weight is True"),
    ({"messages": [USER, {**ANSWER, "weight": float("nan")}]}, "openai", "messages[1].weight is nan"),
    (
        {"messages": [USER, {**ANSWER, "train": "yes"}]},
        "openai",
        "messages[1].train is 'yes'; it must be true or false",
    ),
    ({"messages": [USER, {**ANSWER, "train": False, "weight": 1}]}, "openai", "contradict each other"),
    ({"messages": [USER, {**ANSWER, "loss": 0.5}]}, "openai", "messages[1].loss is 0.5; it must be true or false"),
    ({"messages": [USER, {**ANSWER, "train": True, "loss": False}]}, "openai", "has train True and loss False, which"),
    ({"messages": [USER, {**ANSWER, "loss_scale": 0.5}]}, "openai", "messages[1] has 'loss_scale', which is not read"),
    (
        {"conversations": [HUMAN, {**GPT, "train_detail": [{"begin_offset": 0, "end_offset": 0, "train": False}]}]},
        "sharegpt",
        "conversations[1] has 'train_detail', which is not read",
    ),
    ({"messages": [{**USER, "train": True}, ANSWER]}, "openai", "is of user and asks to be trained"),
    (
        {"messages": [{"role": "system", "content": "s"}, USER, ANSWER], "system": "t"},
        "openai",
        "has two system prompts",
    ),
    ({"instruction": "Hi", "output": "o"}, "belle", "begins with 'Hi', not with 'Human:'"),
    ({"instruction": "Human:a", "output": "o"}, "belle", "does not end with 'Assistant:'"),
    ({"instruction": "Human:a\nAssistant:", "input": "x", "output": "o"}, "belle", "the field 'input' is not empty"),
    ({"instruction": "i", "instances": []}, "self_instruct", "is [], not a list of inputs and outputs"),
    ({"instruction": "i", "instances": [{"input": "x"}]}, "self_instruct", "instances[0] lacks 'output'"),
    ({"db_id": " ", "instruction": "i", "output": "o"}, "text_to_sql", "the field 'db_id' is empty"),
    ({"prompt": 5, "completion": "c"}, "prompt_completion", "the field 'prompt' is int 5, not text"),
    ({"label": True}, "kto", "has neither 'messages' nor 'prompt'"),
    ({"text": "", "label": 1}, "classification", "the field 'text' is empty"),
    ({"text": "t", "label": [{}]}, "classification", "it must be a class name or a number"),
    ({"text": 3}, "text", "the field 'text' is int 3, not text"),
    ({"text": " "}, "text", "the field 'text' is empty"),
    ({"other": "x", "more": "y"}, "text", "lacks the field 'text'"),
]


@pytest.mark.parametrize(("row", "name", "message"), BAD_ROWS)
def test_rows_that_cannot_be_used(row: dict, name: str, message: str) -> None:
    module = FORMATS.load(name)
    with pytest.raises(RowError) as caught:
        module.build(module.Options())(RawRow(row, ORIGIN))
    assert message in str(caught.value)


def test_a_turn_of_calls_may_carry_them_in_either_field() -> None:
    for field in ("value", "tool_calls", "function_call"):
        row = {"conversations": [HUMAN, {"from": "function_call", field: json.dumps([CALL])}]}
        record = convert(row, format="sharegpt")
        assert isinstance(record, Conversation)
        (call,) = record.messages[1].tool_calls
        assert (call.name, call.arguments) == ("f", {"x": 1})


def test_no_format_matches() -> None:
    with pytest.raises(DataError) as caught:
        choose({"question": "q", "answer": "a", "id": 1})
    assert caught.value.problem == "no format matches f.json; its fields are: question, answer, id."
    assert (
        "Perhaps {path: f.json, format: alpaca, columns: {instruction: question, output: answer}}. "
        "Known formats: alpaca needs instruction and output; alpaca_pair needs" in caught.value.remedy
    )


def test_no_mapping_is_suggested_where_the_values_do_not_fit() -> None:
    with pytest.raises(DataError) as caught:
        choose({"turns": ["a", "b"], "id": 1})
    assert "Perhaps" not in caught.value.remedy


def test_several_formats_match() -> None:
    with pytest.raises(DataError, match=r"matches several formats \(openai: .*; sharegpt: "):
        choose({"messages": [USER, ANSWER], "conversations": [HUMAN, GPT]})


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            {"format": "alpaca", "columns": {"prompt": "instruction"}},
            "the format alpaca knows no 'prompt'; it knows: instruction, input",
        ),
        ({"format": "alpaca", "columns": {"outptu": "output"}}, r"knows no 'outptu' \(did you mean output\?\)"),
        (
            {"columns": {"output": "answer"}},
            "columns.output names the column 'answer', which no row has.\nFields found: instruction, output",
        ),
        ({"format": "text", "columns": {"text": "output"}, "system": "s"}, "plain text has no system prompt"),
    ],
)
def test_entries_that_do_not_fit(entry: dict, message: str) -> None:
    with pytest.raises(DataError, match=message):
        choose({"instruction": "i", "output": "o"}, **entry)


def test_an_unknown_format_names_the_known_ones() -> None:
    with pytest.raises(Exception, match=r"no data format named 'alpac'[\s\S]*alpaca"):
        choose({"instruction": "i"}, format="alpac")


@pytest.mark.parametrize("key", ["reasoning_content", "thinking"])
def test_a_thought_in_a_field_of_its_own_is_not_dropped_in_silence(key: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", key: "hm"}]
    with pytest.raises(RowError, match=rf"messages\[1\] has its thought in '{key}', which is not read"):
        turns_of(turns, "messages", OPENAI)


def test_turns_are_known_by_any_of_them() -> None:
    """Parquet leaves out what is null: here the text of a first system turn, which is a fault of this row alone."""
    turns = [{"role": "system"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert choose({"messages": turns}).name == "openai"
    assert choose({"conversations": [{"from": "system"}, {"from": "human", "value": "q"}]}).name == "sharegpt"
