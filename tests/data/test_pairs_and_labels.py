"""Preference pairs, judged answers and labelled texts: from rows to sequences."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luthier.config.data_section import DataEntry
from luthier.data.detection import choose_format
from luthier.data.encoders import labelled, labelled_conversation, pair
from luthier.data.encoders._rendered import CUT_BEFORE_ANSWER
from luthier.data.formats._preferences import SAME_ANSWERS
from luthier.data.records import Labelled, LabelledConversation, Message, Origin, Pair, RawRow, RowError
from luthier.data.rendering import Renderer
from luthier.foundation.errors import DataError

ORIGIN = Origin("f.json", 1)
USER = {"role": "user", "content": "q"}
GOOD, BAD = {"role": "assistant", "content": "good"}, {"role": "assistant", "content": "bad"}
PROMPT = (Message("user", "q"),)
WANTED = Pair(PROMPT, (Message("assistant", "good"),), (Message("assistant", "bad"),), ORIGIN)


def convert(row: dict, **entry):
    raw = RawRow(row, ORIGIN)
    chosen = choose_format(DataEntry(path="f.json", **entry), [raw])
    return chosen.name, chosen.convert(raw)


def trained(tokenizer, sequence) -> str:
    return tokenizer.decode([i for i, w in zip(sequence.input_ids, sequence.weights, strict=True) if w])


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca_pair", {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}),
        (
            "sharegpt_pair",
            {
                "conversations": [{"from": "human", "value": "q"}],
                "chosen": {"from": "gpt", "value": "good"},
                "rejected": {"from": "gpt", "value": "bad"},
            },
        ),
        ("openai_pair", {"prompt": "q", "chosen": "good", "rejected": "bad"}),
        ("openai_pair", {"prompt": [USER], "chosen": [GOOD], "rejected": [BAD]}),
        ("openai_pair", {"messages": [USER], "chosen": GOOD, "rejected": BAD}),
        ("openai_pair", {"chosen": [USER, GOOD], "rejected": [USER, BAD]}),
        ("openai_pair", {"prompt": "q", "chosen": [USER, GOOD], "rejected": [USER, BAD]}),
        ("openai_pair", {"chosen": [USER, GOOD], "rejected": [{**USER, "weight": 0}, BAD]}),
    ],
)
def test_every_layout_gives_the_same_pair(name: str, row: dict) -> None:
    assert convert(row) == (name, WANTED)


def test_a_pairs_earlier_answers_are_context() -> None:
    row = {"instruction": "q", "history": [["a", "b"]], "chosen": "good", "rejected": "good", "system": "s"}
    _, record = convert(row)
    assert [(m.role, m.weight) for m in record.prompt] == [
        ("system", 1.0),
        ("user", 1.0),
        ("assistant", 0.0),
        ("user", 1.0),
    ]
    assert record.notes == (SAME_ANSWERS,)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "q", "chosen": "good", "rejected": 5}, "the field 'rejected' is int, not text, a turn or a list"),
        ({"prompt": "q", "chosen": [USER], "rejected": "bad"}, "the field 'chosen' ends with user"),
        ({"prompt": [USER, GOOD], "chosen": "good", "rejected": "bad"}, "the prompt ends with assistant"),
        ({"prompt": " ", "chosen": "good", "rejected": "bad"}, "prompt with chosen: turn 1 (user) is empty"),
        ({"chosen": [GOOD], "rejected": [BAD]}, "begin with no turn in common"),
    ],
)
def test_pairs_that_cannot_be_used(row: dict, message: str) -> None:
    with pytest.raises(RowError) as caught:
        convert(row)
    assert message in str(caught.value)


def test_a_pair_is_two_sequences(byte_tokenizer) -> None:
    build = pair.build(pair.Options(), byte_tokenizer, Renderer(byte_tokenizer, "chatml"))
    example = build([WANTED]).examples[0]
    assert [trained(byte_tokenizer, s) for s in example.sequences] == ["good<|im_end|>", "bad<|im_end|>"]
    prompt = Renderer(byte_tokenizer, "chatml").prompt_ids(PROMPT)
    assert all(list(s.input_ids[: len(prompt)]) == prompt for s in example.sequences)


def test_a_pair_without_room_for_its_answers_trains_nothing(byte_tokenizer) -> None:
    long = "word " * 60
    record = Pair((Message("user", long),), (Message("assistant", "x"),), (Message("assistant", "y"),), ORIGIN)
    renderer = Renderer(byte_tokenizer, "chatml")
    encoded = pair.build(pair.Options(cutoff_length=8), byte_tokenizer, renderer)([record])
    assert encoded.examples[0].targets == 0 and encoded.findings == {CUT_BEFORE_ANSWER: 1}
    assert pair.build(pair.Options(cutoff_length=16, over_length="drop"), byte_tokenizer, renderer)([record]).dropped
    with pytest.raises(DataError, match="1 rows are longer"):
        pair.build(pair.Options(cutoff_length=16, over_length="error"), byte_tokenizer, renderer)([record])


@pytest.mark.parametrize(
    "row",
    [
        {"messages": [USER, GOOD], "label": True},
        {"prompt": "q", "completion": "good", "label": "True"},
        {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "good"}], "label": True},
    ],
)
def test_judged_answers(row: dict) -> None:
    assert convert(row) == ("kto", LabelledConversation((PROMPT[0], Message("assistant", "good")), True, ORIGIN))


def test_a_judged_answer_beside_an_input_and_a_history() -> None:
    row = {"prompt": "q", "input": "n", "history": [["a", "b"]], "completion": "good", "label": True}
    columns = {"input": "input", "history": "history"}
    contents = [[turn.content for turn in convert(row, columns=said)[1].messages] for said in ({}, columns)]
    assert contents == [["q", "good"], ["a", "b", "q\nn", "good"]]
    with pytest.raises(RowError, match="the field 'input' stands beside 'prompt', which is a list of turns"):
        convert({**row, "prompt": [USER]}, columns=columns)
    assert convert({**row, "prompt": [USER], "input": "", "history": []}, columns=columns)[0] == "kto"


@pytest.mark.parametrize("label", [2, "yes", None, [True], 0.5])
def test_labels_that_judge_nothing(label) -> None:
    with pytest.raises(RowError, match="it must be true or false"):
        convert({"messages": [USER, GOOD], "label": label}, format="kto")


def test_a_judged_answer_trains_its_last_turn(byte_tokenizer) -> None:
    talk = (*PROMPT, Message("assistant", "one"), *PROMPT, Message("assistant", "two"))
    renderer = Renderer(byte_tokenizer, "chatml")
    build = labelled_conversation.build(labelled_conversation.Options(), byte_tokenizer, renderer)
    example = build([LabelledConversation(talk, False, ORIGIN)]).examples[0]
    assert trained(byte_tokenizer, example.sequences[0]) == "two<|im_end|>" and example.extras == {"label": 0.0}


@pytest.mark.parametrize(
    ("row", "record"),
    [
        ({"text": "t", "label": 1}, Labelled("t", 1, ORIGIN)),
        ({"0": "t", "1": "0"}, Labelled("t", "0", ORIGIN)),
        ({"0": "a", "1": "b", "2": "yes"}, Labelled("a", "yes", ORIGIN, "b")),
        ({"premise": "a", "hypothesis": "b", "label": "no"}, Labelled("a", "no", ORIGIN, "b")),
        ({"label": "x", "sentence": "t", "idx": 3}, Labelled("t", "x", ORIGIN)),
    ],
)
def test_labelled_texts(row: dict, record: Labelled) -> None:
    assert convert(row) == ("classification", record)


def test_class_names_become_numbers(byte_tokenizer) -> None:
    records = [Labelled("t", name, ORIGIN) for name in ("b", "a", "10", "9")]
    assert labelled.label_names(records) == ("9", "10", "a", "b")
    build = labelled.build(labelled.Options(labels=("a", "b")), byte_tokenizer, None)
    encoded = build(records[:3])
    assert [example.extras["label"] for example in encoded.examples] == [1.0, 0.0]
    assert "the label '10', which is none of the classes: a, b" in encoded.rejected[0].reason
    numbers = labelled.build(labelled.Options(), byte_tokenizer, None)(records)
    assert [example.extras["label"] for example in numbers.examples] == [10.0, 9.0] and len(numbers.rejected) == 2


@settings(max_examples=40, deadline=None)
@given(first=st.text("abc ", min_size=1, max_size=40), second=st.text("abc ", max_size=40), cutoff=st.integers(2, 30))
def test_two_texts_never_touch(byte_tokenizer, first: str, second: str, cutoff: int) -> None:
    build = labelled.build(labelled.Options(cutoff_length=cutoff), byte_tokenizer, None)
    example = build([Labelled(first, 0, ORIGIN, second)]).examples[0]
    ids = list(example.sequences[0].input_ids)
    whole = [*byte_tokenizer(first).input_ids, byte_tokenizer.eos_token_id, *byte_tokenizer(second).input_ids]
    assert ids == whole[:cutoff] and example.untruncated_length == len(whole) and example.targets == 0


def test_instruction_layouts_are_told_apart() -> None:
    dialogue = {"instruction": "Human:a\nAssistant:b\nHuman:c\nAssistant:", "input": "", "output": "d"}
    name, record = convert(dialogue)
    assert name == "belle" and [m.content for m in record.messages] == ["a", "b", "c", "d"]
    name, record = convert({"db_id": "x", "instruction": "i", "input": "q", "output": "SELECT 1", "history": []})
    assert name == "text_to_sql" and record.messages[0].content == "i\nq"
    name, record = convert({"instruction": "i", "instances": [{"input": "<noinput>", "output": "o"}]})
    assert name == "self_instruct" and [m.content for m in record.messages] == ["i", "o"]
    assert convert({"prompt": "q", "completion": "good"})[0] == "prompt_completion"


def test_a_task_with_several_instances_is_several_records() -> None:
    row = RawRow({"instruction": "i", "instances": [{"input": x, "output": "o"} for x in "ab"]}, ORIGIN)
    chosen = choose_format(DataEntry(path="f.json"), [row])
    assert [record.messages[0].content for record in chosen.convert_all(row)] == ["i\na", "i\nb"]
    with pytest.raises(RowError, match="holds 2 instances; write one row for each"):
        chosen.convert(row)
