"""From a config to examples: splits, samples, rejection, refusals, the report and the fingerprint."""

from __future__ import annotations

import copy
import json
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.data_section import DataConfig
from luthier.config.schema import RunConfig
from luthier.config.sections import MethodOptions, PluginOptions
from luthier.config.training_section import TrainingConfig
from luthier.data.preparing import PreparedData, load_records, prepare, split_rows
from luthier.data.rejecting import write_rejected
from luthier.foundation.errors import DataError

ROWS = [{"instruction": f"question {i}", "output": f"answer {i}"} for i in range(40)]


def config(train: Any, seed: int = 42, **data: Any) -> RunConfig:
    data.setdefault("template", "chatml")
    evaluated = {"eval_strategy": "epoch"} if "validation" in data else {}
    return RunConfig(
        model="m",
        data=DataConfig(train=train, **data),
        stage=PluginOptions(name="sft"),
        method=MethodOptions(name="lora"),
        training=TrainingConfig(seed=seed, **evaluated),
    )


def origins(examples) -> list[int]:
    return [example.origin.row for example in examples]


def made(tokenizer, train, **data) -> PreparedData:
    return prepare(config(train, **data), tokenizer)


def test_files_in_order(byte_tokenizer, write) -> None:
    first, second = write("a.json", ROWS[:3]), write("b.jsonl", ROWS[3:5])
    prepared = made(byte_tokenizer, [str(first), str(second)])
    assert [(Path(e.origin.path).name, e.origin.row) for e in prepared.train] == [
        ("a.json", 1),
        ("a.json", 2),
        ("a.json", 3),
        ("b.jsonl", 1),
        ("b.jsonl", 2),
    ]
    assert not prepared.validation and not prepared.test and not prepared.rejected


def test_shares_and_counts_are_disjoint(byte_tokenizer, write) -> None:
    path = str(write("a.json", ROWS))
    prepared = made(byte_tokenizer, path, validation=0.1, test=5)
    parts = [origins(prepared.train), origins(prepared.validation), origins(prepared.test)]
    assert list(map(len, parts)) == [31, 4, 5]
    assert sorted(chain.from_iterable(parts)) == list(range(1, 41)) and all(part == sorted(part) for part in parts)
    again = made(byte_tokenizer, path, validation=0.1, test=5)
    assert origins(again.validation) == parts[1]
    other = prepare(config(path, seed=7, validation=0.1, test=5), byte_tokenizer)
    assert origins(other.validation) != parts[1]


@given(
    count=st.integers(1, 300),
    sizes=st.dictionaries(
        st.sampled_from(["test", "validation"]), st.floats(0.01, 0.99) | st.integers(1, 100), min_size=0
    ),
    seed=st.integers(0, 2**31),
)
def test_a_split_is_a_partition(count, sizes, seed) -> None:
    try:
        parts = split_rows(count, sizes, seed)
    except DataError:
        taken = sum(max(1, round(s * count)) if isinstance(s, float) else s for s in sizes.values())
        assert taken >= count
        return
    assert sorted(chain.from_iterable(parts.values())) == list(range(count))
    assert all(parts.values())
    assert parts == split_rows(count, sizes, seed)


def test_a_split_that_leaves_nothing(byte_tokenizer, write) -> None:
    path = str(write("a.json", ROWS[:3]))
    with pytest.raises(DataError, match=r"data\.validation=3 takes 3 of the 3 usable training rows"):
        made(byte_tokenizer, path, validation=3)


def test_validation_from_a_file(byte_tokenizer, write) -> None:
    train, held = str(write("a.json", ROWS[:5])), str(write("b.json", ROWS[5:7]))
    prepared = made(byte_tokenizer, train, validation=[held])
    assert len(prepared.train) == 5 and len(prepared.validation) == 2
    assert [source.split for source in prepared.report.sources] == ["train", "validation"]


def test_validation_sets_kept_apart(byte_tokenizer, write, tmp_path: Path) -> None:
    train = str(write("train.json", ROWS[:4]))
    (tmp_path / "other").mkdir()
    held = [
        str(write(name, ROWS[a:b])) for name, a, b in (("a.json", 5, 7), ("b c.json", 7, 12), ("other/a.json", 12, 13))
    ]
    for _ in range(2):  # made, and from the cache
        prepared = made(byte_tokenizer, train, validation=held, evaluate_each=True)
        assert {name: origins(part) for name, part in prepared.validation_sets.items()} == {
            "a": [1, 2],
            "b_c": [1, 2, 3, 4, 5],
            "a_2": [1],
        }
        assert [row for part in prepared.validation_sets.values() for row in part] == list(prepared.validation)
        assert prepared.validation_sets["b_c"][1:3] == prepared.validation[3:5]
        assert [source["examples"] for source in prepared.report.as_dict()["sources"]] == [None, 2, 5, 1]
    together = made(byte_tokenizer, train, validation=held)
    assert not together.validation_sets and list(together.validation) == list(prepared.validation)


def test_a_sets_name_may_end_like_a_number_of_anothers(byte_tokenizer, write, tmp_path: Path) -> None:
    train = str(write("train.json", ROWS[:4]))
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
    files = (("dev_2.json", 5, 6), ("dev.json", 6, 8), ("x/dev.json", 8, 11), ("y/dev_2.json", 11, 12))
    held = [str(write(name, ROWS[first:end])) for name, first, end in files]
    sets = made(byte_tokenizer, train, validation=held, evaluate_each=True).validation_sets
    assert {name: len(part) for name, part in sets.items()} == {"dev_2": 1, "dev": 2, "dev_3": 3, "dev_2_2": 1}


def test_documents_of_sets_kept_apart_share_no_block(byte_tokenizer, write) -> None:
    train, held = str(write("a.txt", "one two")), [str(write(name, "three")) for name in ("b.txt", "c.txt")]
    lengths = [
        len(
            prepare(
                config(train, template="auto", validation=held, evaluate_each=each), byte_tokenizer, encoder="text"
            ).validation
        )
        for each in (False, True)
    ]
    assert lengths == [1, 2]


def test_a_set_of_its_own_needs_examples(byte_tokenizer, write) -> None:
    train, good, mute = (str(write(name, rows)) for name, rows in (
        ("a.json", message_rows(1)), ("b.json", message_rows(1)), ("c.json", message_rows(0))
    ))  # fmt: skip
    assert len(made(byte_tokenizer, train, validation=[good, mute]).validation) == 1
    with pytest.raises(DataError, match=r"c\.json has no example to evaluate on"):
        made(byte_tokenizer, train, validation=[good, mute], evaluate_each=True)
    with pytest.raises(ValueError, match="evaluate_each needs validation to be a list"):
        config(train, validation=1, evaluate_each=True)


def test_max_samples_is_a_seeded_sample(byte_tokenizer, write) -> None:
    path = str(write("a.json", ROWS))
    prepared = made(byte_tokenizer, {"path": path, "max_samples": 8})
    rows = origins(prepared.train)
    assert len(rows) == 8 and rows == sorted(rows) and rows != list(range(1, 9))
    assert rows == origins(made(byte_tokenizer, {"path": path, "max_samples": 8}).train)
    source = prepared.report.as_dict()["sources"][0]
    assert (source["rows_read"], source["rows_sampled"], source["rows_kept"]) == (40, 8, 8)
    assert len(made(byte_tokenizer, {"path": path, "max_samples": 99}).train) == 40


BAD = [{"instruction": "x"}, {"instruction": "x", "output": 3}]


def test_invalid_rows_error_lists_them_all(byte_tokenizer, write) -> None:
    path = write("a.json", [*ROWS[:2], *BAD])
    other = write("b.json", [ROWS[0], {"instruction": None, "output": "x"}])
    with pytest.raises(DataError) as caught:
        made(byte_tokenizer, [str(path), str(other)])
    assert "3 rows can't be used:" in caught.value.problem
    assert f"{path}, row 3: lacks the field 'output'" in caught.value.problem
    assert f"{path}, row 4: the field 'output' is int 3, not text." in caught.value.problem
    assert f"{other}, row 2: the field 'instruction' is NoneType" in caught.value.problem
    assert "data.invalid_rows to reject" in caught.value.remedy


def test_no_more_than_twenty_bad_rows_are_shown(byte_tokenizer, write) -> None:
    path = write("a.json", [ROWS[0], *BAD * 15])
    with pytest.raises(DataError, match=r"30 rows can't be used[\s\S]*and 10 more") as caught:
        made(byte_tokenizer, str(path))
    assert caught.value.problem.count("\n  - ") == 20


def test_invalid_rows_reject(byte_tokenizer, write, tmp_path: Path) -> None:
    path = write("a.json", [*ROWS[:2], *BAD, {"instruction": "x", "output": "\ud800"}])
    prepared = made(byte_tokenizer, str(path), invalid_rows="reject")
    assert len(prepared.train) == 2
    assert [item.origin.row for item in prepared.rejected] == [3, 4, 5]
    source = prepared.report.as_dict()["sources"][0]
    assert source["rows_rejected"] == 3 and sum(source["rejected_by_reason"].values()) == 3
    write_rejected(tmp_path / "run" / "rejected.jsonl", prepared.rejected)
    written = [json.loads(line) for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert written[0]["file"] == str(path) and written[0]["row"] == 3 and written[0]["values"] == {"instruction": "x"}
    assert "lacks the field" in written[0]["reason"] and written[2]["values"]["output"] == "\ud800"


def test_rows_a_template_refuses(byte_tokenizer, write) -> None:
    changed = copy.deepcopy(byte_tokenizer)
    changed.chat_template = (
        "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('bad word') }}{% endif %}"
        "{{ m['role'] + ':' + m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
    )
    path = str(write("a.json", [*ROWS[:2], {"instruction": "a bad one", "output": "x"}]))
    with pytest.raises(DataError, match=r"row 3: the chat template \(the tokenizer's own\) refuses .*: bad word"):
        made(changed, path, template="auto")
    prepared = made(changed, path, template="auto", invalid_rows="reject")
    assert prepared.report.splits["train"].unrendered == 1 and prepared.rejected[0].origin.row == 3


def test_no_usable_row(byte_tokenizer, write) -> None:
    with pytest.raises(DataError, match=r"the train data has no row that can be used\.\nThe first of 1 rejected"):
        made(byte_tokenizer, str(write("a.json", [{"instruction": "", "output": "x"}])), invalid_rows="reject")


def message_rows(*weights: float) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": weight}]}
        for weight in weights
    ]


def test_rows_without_target_are_left_out_and_counted(byte_tokenizer, write) -> None:
    prepared = made(byte_tokenizer, str(write("a.json", message_rows(1, 0, 0.5))))
    assert origins(prepared.train) == [1, 3]
    report = prepared.report.as_dict()["splits"]["train"]
    assert (report["rows"], report["examples"], report["zero_target_rows"]) == (3, 2, 1)


def test_every_label_masked(byte_tokenizer, write) -> None:
    with pytest.raises(DataError, match=r"every label of the train data is masked: none of its 2 rows has a token"):
        made(byte_tokenizer, str(write("a.json", message_rows(0, 0))))
    with pytest.raises(DataError, match=r"every label .* \(2 x cut before the first answer; 2 cut"):
        made(byte_tokenizer, str(write("b.json", message_rows(1, 1))), cutoff_length=3)
    with pytest.raises(DataError, match=r"every row of the train data is longer than data\.cutoff_length"):
        made(byte_tokenizer, str(write("c.json", message_rows(1, 1))), cutoff_length=3, over_length="drop")


def test_the_wrong_kind_of_rows(byte_tokenizer, write) -> None:
    documents, talks = str(write("a.txt", "one\ntwo")), str(write("a.json", ROWS))
    with pytest.raises(
        DataError, match=r"a\.txt holds plain text .* this run's stage learns conversations\.\n.*stage: pretrain"
    ):
        made(byte_tokenizer, documents)
    with pytest.raises(
        DataError, match=r"a\.json holds conversations .* this run's stage learns plain text\.\n.*stage: sft"
    ):
        prepare(config(talks, template="auto"), byte_tokenizer, encoder="text")
    with pytest.raises(DataError, match=r"name the column that judges its answers .*: \{format: kto, columns: "):
        prepare(config(talks, template="chatml"), byte_tokenizer, encoder="labelled_conversation")
    as_text = {"path": talks, "format": "text", "columns": {"text": "output"}}
    prepared = prepare(config(as_text, template="auto"), byte_tokenizer, encoder="text")
    assert prepared.report.splits["train"].records == 40


def test_settings_that_pretraining_would_ignore(byte_tokenizer, write) -> None:
    path = str(write("a.txt", "one\ntwo"))
    with pytest.raises(
        DataError,
        match=r"over_length is 'drop' and data\.template is 'chatml', which have no effect on plain text \(stage: p",
    ):
        prepare(config(path, over_length="drop"), byte_tokenizer, encoder="text")
    with pytest.raises(DataError, match="plain text has no system prompt"):
        prepare(
            config({"path": path, "format": "text", "system": "s"}, template="auto"), byte_tokenizer, encoder="text"
        )


def test_pretraining(byte_tokenizer, write) -> None:
    path = str(write("a.txt", "one two three\nfour five six\nseven"))
    for across in (True, False):
        prepared = prepare(
            config(path, template="auto", cutoff_length=8),
            byte_tokenizer,
            encoder="text",
            encoder_options={"attend_across_documents": across},
        )
        assert any(len(example.sequences) > 1 for example in prepared.train) is not across
        report = prepared.report.as_dict()["splits"]["train"]
        assert report["rows"] == 3 and report["truncated_rows"] == 0 and report["eos_coverage"] == 1.0


def test_report(byte_tokenizer, write) -> None:
    from io import StringIO

    from rich.console import Console

    rows = [{**ROWS[0], "id": 1}, {"instruction": "i", "output": "a long answer " * 50}, {"instruction": "x"}]
    prepared = made(byte_tokenizer, str(write("a.json", rows)), cutoff_length=64, invalid_rows="reject")
    source, split = prepared.report.as_dict()["sources"][0], prepared.report.as_dict()["splits"]["train"]
    assert source["format"] == "alpaca" and source["reason"] == "has the columns instruction and output"
    assert source["unused_columns"] == ["id"]
    assert split["tokens"] == sum(example.tokens for example in prepared.train)
    assert split["targets"] == sum(example.targets for example in prepared.train)
    assert split["truncated_rows"] == 1 and split["eos_coverage"] == 0.5
    assert split["truncated_tokens"] == split["longest_tokens"] - 64
    json.dumps(prepared.report.as_dict())
    out = StringIO()
    Console(file=out, width=200).print(prepared.report.table())
    for shown in (
        "alpaca: has the columns instruction and output",
        "columns not used: id",
        "1 cut to the cutoff",
        "1 rejected",
    ):
        assert shown in out.getvalue()


def fingerprint(tokenizer, train, seed: int = 42, **data) -> str:
    return prepare(config(train, seed, **data), tokenizer).fingerprint


def test_fingerprint(byte_tokenizer, write, tmp_path: Path) -> None:
    path = write("a.json", ROWS)
    same = fingerprint(byte_tokenizer, str(path))
    (tmp_path / "moved").mkdir()
    moved = tmp_path / "moved" / "other name.json"
    moved.write_bytes(path.read_bytes())
    assert fingerprint(byte_tokenizer, str(moved)) == same
    entry = {"path": str(path)}
    other_tokenizer = copy.deepcopy(byte_tokenizer)
    other_tokenizer.add_tokens(["answer"])
    changed = [
        fingerprint(byte_tokenizer, str(write("b.json", ROWS[:-1]))),
        fingerprint(byte_tokenizer, str(path), seed=1),
        fingerprint(byte_tokenizer, str(path), cutoff_length=512),
        fingerprint(byte_tokenizer, str(path), over_length="drop"),
        fingerprint(byte_tokenizer, str(path), max_source_length=500, max_target_length=500),
        fingerprint(byte_tokenizer, str(path), max_source_length=400, max_target_length=500),
        fingerprint(byte_tokenizer, str(path), max_source_length=500, max_target_length=400),
        fingerprint(byte_tokenizer, str(path), template="llama3"),
        fingerprint(byte_tokenizer, str(path), shuffle=False),
        fingerprint(byte_tokenizer, str(path), validation=2),
        fingerprint(byte_tokenizer, {**entry, "max_samples": 39}),
        fingerprint(byte_tokenizer, {**entry, "max_samples": 39, "head": True}),
        fingerprint(byte_tokenizer, {**entry, "split": "[:39]"}),
        fingerprint(byte_tokenizer, {**entry, "system": "s"}),
        fingerprint(byte_tokenizer, {**entry, "system": ["s", "t"]}),
        fingerprint(byte_tokenizer, {**entry, "columns": {"instruction": "output", "output": "instruction"}}),
        fingerprint(other_tokenizer, str(path)),
    ]
    assert len({same, *changed}) == len(changed) + 1


def test_rows_can_be_counted_without_a_tokenizer(write) -> None:
    loaded = load_records(config(str(write("a.json", ROWS)), validation=4).data, seed=1)
    assert {name: len(records) for name, records in loaded.splits.items()} == {"train": 36, "validation": 4}


def test_labelled_rows_are_kept_though_no_token_of_them_is_trained(byte_tokenizer, write) -> None:
    path = write("rows.jsonl", '{"text": "good", "label": "yes"}\n{"text": "bad", "label": "no"}\n')
    prepared = prepare(
        config(str(path), template="auto"),
        byte_tokenizer,
        encoder="labelled",
        encoder_options={"labels": ("no", "yes")},
    )
    assert [example.extras["label"] for example in prepared.train] == [1.0, 0.0]
    assert not prepared.rejected
