"""LLaMA-Factory's dataset_info.json, read as it is."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.config.data_section import DataConfig, DataEntry
from luthier.data.dataset_info import resolve
from luthier.data.entries import load_entry
from luthier.data.preparing import load_records
from luthier.data.records import Conversation, Document, Pair
from luthier.foundation.errors import DataError

# as in the registry that LLaMA-Factory ships
SHIPPED: dict[str, Any] = {
    "identity": {"file_name": "identity.json"},
    "glaive": {
        "file_name": "glaive.json",
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "tools": "tools"},
    },
    "wiki": {"file_name": "wiki.txt", "columns": {"prompt": "text"}},
    "dpo": {
        "file_name": "dpo.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "chosen", "rejected": "rejected"},
    },
    "kto": {
        "file_name": "kto.json",
        "formatting": "sharegpt",
        "columns": {"messages": "messages", "kto_tag": "label"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "hub": {
        "hf_hub_url": "owner/name",
        "ms_hub_url": "other/name",
        "subset": "en",
        "split": "train_sft",
        "folder": "python",
        "num_samples": 7,
        "columns": {"prompt": "question", "query": None, "response": "answer", "history": "turns"},
    },
}


AROUND = {"system": None, "tools": None}  # not read unless they are named
SHAREGPT = [{"from": "human", "value": "asked"}, {"from": "gpt", "value": "said"}]
TOOLS = '[{"name": "f"}]'
ALPACA = {"instruction": "i", "input": "n", "output": "o", "history": [["h", "a"]], "system": "s", "tools": ""}
TURNS = [{"role": "user", "content": "asked"}, {"role": "assistant", "content": "said"}]


def resolved(write: Any, registered: Any, **own: Any) -> dict[str, Any]:
    file = write("dataset_info.json", {"mine": registered})
    return resolve(DataEntry(path=f"{file}#mine", **own)).model_dump(exclude_unset=True)


def test_the_entries_it_ships(write, tmp_path) -> None:
    assert resolved(write, SHIPPED["glaive"]) == {
        "path": str(tmp_path / "glaive.json"),
        "format": "sharegpt",
        "columns": {"conversations": "conversations", "tools": "tools", "system": None},
        "split": "train",
    }
    assert resolved(write, SHIPPED["wiki"])["format"] == "text"
    dpo = resolved(write, SHIPPED["dpo"])
    assert dpo["format"] == "sharegpt_pair" and dpo["columns"]["chosen"] == "chosen"
    kto = resolved(write, SHIPPED["kto"])
    assert kto["format"] == "kto" and kto["columns"] == {
        "messages": "messages",
        "label": "label",
        **AROUND,
    }
    assert kto["tags"] == SHIPPED["kto"]["tags"]
    assert resolved(write, SHIPPED["hub"]) == {
        "path": "huggingface:owner/name",
        "subset": "en",
        "split": "train_sft",
        "folder": "python",
        "max_samples": 7,
        "format": "alpaca",
        "columns": {"instruction": "question", "input": None, "output": "answer", "history": "turns", **AROUND},
    }


def test_older_registries_say_a_stage_and_a_hash(write, tmp_path) -> None:
    (tmp_path / "mine.json").write_bytes(b"abc")
    sha1 = "a9993e364706816aba3e25717850c26c9cd0d89d"  # of "abc", FIPS 180-1, appendix A
    assert resolved(write, {"file_name": "mine.json", "file_sha1": sha1.upper()})["path"] == str(tmp_path / "mine.json")
    (tmp_path / "mine.json").write_bytes(b"abd")
    with pytest.raises(DataError, match=f"but file_sha1 says {sha1}"):
        resolved(write, {"file_name": "mine.json", "file_sha1": sha1})
    assert resolved(write, {"file_name": "a.json", "stage": "rm"})["format"] == "alpaca_pair"
    assert resolved(write, {"file_name": "a.txt", "stage": "pt", "columns": {"prompt": "text"}})["format"] == "text"
    assert resolved(write, {"file_name": "a.json", "stage": "sft"})["format"] == "alpaca"


def test_the_configs_own_settings_go_first(write) -> None:
    found = resolved(write, SHIPPED["hub"], split="test[:5]", max_samples=3, head=True, system="s")
    assert (found["split"], found["max_samples"], found["head"], found["system"]) == ("test[:5]", 3, True, "s")
    assert found["subset"] == "en"


def test_rows_through_a_registry(write) -> None:
    write("q.jsonl", [{"q": f"question {i}", "a": "x", "more": "m"} for i in range(10)])
    write("t.txt", "one\ntwo")
    turns = [{"from": "human", "value": "hello"}, {"from": "gpt", "value": "hi"}]
    write("s.json", [{"turns": turns}])
    tags = {"role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt"}
    file = write(
        "dataset_info.json",
        {
            "q": {"file_name": "q.jsonl", "columns": {"prompt": "q", "response": "a"}, "num_samples": 4},
            "t": {"file_name": "t.txt", "columns": {"prompt": "text"}},
            "s": {"file_name": "s.json", "formatting": "sharegpt", "columns": {"messages": "turns"}, "tags": tags},
        },
    )
    loaded = load_records(DataConfig(train=[f"{file}#q", f"{file}#s"], validation=[f"{file}#t"]), 0)
    assert len(loaded.splits["train"]) == 5 and isinstance(loaded.splits["train"][4], Conversation)
    assert isinstance(loaded.splits["validation"][0], Document)
    assert loaded.report.sources[0].unused == ("more",) and loaded.report.sources[0].sampled == 4
    assert loaded.located["train"][0].files[0].name == "q.jsonl"


@pytest.mark.parametrize(
    ("row", "registered", "learnt", "unused"),
    [
        # what LLaMA-Factory's data/parser.py and data/converter.py make of the same rows
        (ALPACA, {}, ["i\nn", "o"], {"history", "system", "tools"}),
        (ALPACA, {"columns": {"prompt": "instruction", "response": "output"}}, ["i", "o"], {"input", "history", "system", "tools"}),
        (ALPACA, {"columns": {"prompt": "instruction", "query": None, "response": "output", "system": "system"}}, ["s", "i", "o"], {"input", "history", "tools"}),
        (ALPACA, {"columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "history"}}, ["h", "a", "i\nn", "o"], {"system", "tools"}),
        (ALPACA, {"columns": {"query": "input", "response": "output"}}, ["n", "o"], {"instruction", "history", "system", "tools"}),
        ({"conversations": SHAREGPT, "system": "s", "tools": TOOLS}, {"formatting": "sharegpt"}, ["asked", "said"], {"system", "tools"}),
        ({"conversations": SHAREGPT, "system": "s"}, {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}}, ["s", "asked", "said"], set()),
        ({"messages": TURNS, "system": "s", "tools": TOOLS}, {"formatting": "openai", "columns": {"messages": "messages"}}, ["asked", "said"], {"system", "tools"}),
        (
            {"messages": TURNS[:1], "chosen": TURNS[1], "rejected": TURNS[1], "system": "s", "prompt": "p"},
            {"formatting": "openai", "ranking": True, "columns": {"messages": "messages", "chosen": "chosen", "rejected": "rejected"}},
            ["asked", "said", "said"],
            {"system", "prompt"},
        ),
        (
            {"instruction": "i", "input": "n", "chosen": "a", "rejected": "b", "system": "s"},
            {"ranking": True, "columns": {"prompt": "instruction", "chosen": "chosen", "rejected": "rejected"}},
            ["i", "a", "b"],
            {"input", "system"},
        ),
        (
            {"messages": TURNS, "prompt": "p", "completion": "c", "label": True, "system": "s"},
            {"columns": {"prompt": "prompt", "response": "completion", "kto_tag": "label"}},
            ["p", "c"],
            {"messages", "system"},
        ),
        (
            {"instruction": "i", "input": "n", "output": "o", "turns": [["q", "a"]], "history": [], "label": False},
            {"columns": {"prompt": "instruction", "query": "input", "response": "output", "history": "turns", "kto_tag": "label"}},
            ["q", "a", "i\nn", "o"],
            {"history"},
        ),
        (
            {"instruction": "i", "input": "n", "output": "o", "history": [["q", "a"]], "label": False},
            {"columns": {"query": "instruction", "response": "output", "kto_tag": "label"}},
            ["i", "o"],
            {"input", "history"},
        ),
    ],
)  # fmt: skip
def test_columns_that_a_registry_does_not_name_are_not_read(
    write, row: dict[str, Any], registered: dict[str, Any], learnt: list[str], unused: set[str]
) -> None:
    write("rows.json", [row, row])
    entry = DataEntry(path=f"{write('dataset_info.json', {'mine': {'file_name': 'rows.json', **registered}})}#mine")
    loaded = load_entry(entry, "train", 0, 0, None)
    record = loaded.records[0]
    turns = (*record.prompt, *record.chosen, *record.rejected) if isinstance(record, Pair) else record.messages
    assert [turn.content for turn in turns] == learnt and not record.tools
    assert set(loaded.report.unused) == unused


def test_a_part_that_stands_nowhere(write) -> None:
    path = str(write("rows.json", [ALPACA]))
    for format in ("alpaca", "auto"):
        loaded = load_entry(DataEntry(path=path, format=format, columns={"input": None}), "train", 0, 0, None)
        assert [turn.content for turn in loaded.records[0].messages] == ["s", "h", "a", "i", "o"]
        assert loaded.report.unused == ("input",)
    with pytest.raises(DataError, match="alpaca can't do without output; name its column"):
        load_entry(DataEntry(path=path, format="alpaca", columns={"output": None}), "train", 0, 0, None)
    with pytest.raises(DataError, match="no format matches"):
        load_entry(DataEntry(path=path, columns={"output": None}), "train", 0, 0, None)


@pytest.mark.parametrize(
    ("registered", "message"),
    [
        ({"file_nam": "a"}, r"data set 'mine': file_nam: Extra inputs are not permitted"),
        ({"file_name": "a", "formatting": "belle"}, "formatting: Input should be 'alpaca'"),
        ({"file_name": "a", "num_samples": 0}, "num_samples: Input should be greater than 0"),
        (
            {"file_name": "a", "columns": {"images": "i"}},
            r"columns\.images is 'i', but rows of alpaca have no such part",
        ),
        ({"file_name": "a", "columns": {"response": "r"}}, "columns names neither prompt nor query"),
        ({"file_name": "a", "columns": {"prompt": "p", "query": "q"}}, "columns names no response"),
        ({"file_name": "a", "columns": {"prompt": "p", "kto_tag": "k", "response": None}}, "columns names no response"),
        ({"file_name": "a", "subset": "s"}, "subset is 's', which has no effect on a file"),
        ({"file_name": "a", "folder": "s"}, "folder is 's', which has no effect on a file"),
        ({"file_name": "a", "split": "a+b"}, "split: Value error, must be a split"),
        ({"file_name": "a", "ranking": True, "columns": {"kto_tag": "k"}}, "ranking and kto_tag exclude each other"),
        ({"file_name": "a", "tags": {"role_tag": "r"}}, "tags have no effect on formatting alpaca"),
        ({"file_name": "a", "formatting": "sharegpt", "tags": {"rol": "r"}}, r"tags\.rol is unknown"),
        ({"file_name": "a", "file_sha1": "abc"}, "file_sha1: String should match pattern"),
        (
            {"file_name": "dataset_info.json", "file_sha1": "0" * 40},
            f"has the SHA-1 [0-9a-f]{{40}}, but file_sha1 says {'0' * 40}",
        ),
        ({"file_name": ".", "file_sha1": "0" * 40}, "file_sha1 has no effect on the folder"),
        ({"hf_hub_url": "a/b", "file_sha1": "0" * 40}, "file_sha1 has no effect on a hub's data set"),
        ({"file_name": "a", "stage": "pt"}, "stage is pt, but formatting, ranking and columns say rows of sft"),
        ({"file_name": "a", "stage": "sft", "ranking": True}, "stage is sft, but .* rows of rm"),
        ({"file_name": "a", "stage": "pretrain"}, "stage: Input should be 'pt', 'sft' or 'rm'"),
        ({"script_url": "a"}, "has script_url, and none of hf_hub_url, ms_hub_url"),
        ({"om_hub_url": "a"}, "has om_hub_url, and none of hf_hub_url"),
        ({"cloud_file_name": "s3://a"}, "has cloud_file_name, and none of"),
        ({}, "has no address"),
        ([], "Input should be a valid dictionary"),
    ],
)
def test_what_is_refused(write, registered: Any, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        resolved(write, registered)
    assert "dataset_info.json" in caught.value.problem and caught.value.remedy


def test_broken_registries_and_unknown_names(write, tmp_path) -> None:
    file = write("dataset_info.json", {"alpaca_en": {}, "other": {}})
    with pytest.raises(DataError, match=r"has no data set 'alpaca_em'\.\nDid you mean alpaca_en\?"):
        resolve(DataEntry(path=f"{file}#alpaca_em"))
    for content in ("{", "[]"):
        with pytest.raises(DataError, match=r"dataset_info\.json (can't be read as JSON|is no object)"):
            resolve(DataEntry(path=f"{write('dataset_info.json', content)}#x"))
    with pytest.raises(DataError, match=r"the registry of data sets .* does not exist"):
        resolve(DataEntry(path=f"{tmp_path}/none.json#x"))


def test_tags_that_a_format_does_not_know(write) -> None:
    path = str(write("a.json", [{"instruction": "q", "output": "a"}]))
    with pytest.raises(DataError, match=r"tags"):
        load_records(DataConfig(train={"path": path, "format": "alpaca", "tags": {"role_tag": "r"}}), 0)
