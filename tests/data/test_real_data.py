"""The data sets people start from, with no `format:` given."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.config.schema import DataConfig
from luthier.data.preparing import LoadedRecords, load_records
from luthier.data.records import Conversation, Document
from luthier.foundation.errors import DataError


def load(path: Path, **settings) -> LoadedRecords:
    return load_records(DataConfig(train=str(path), **settings), seed=0)


@pytest.mark.parametrize(
    ("name", "format_name", "rows"),
    [
        ("instruct/alpaca_en_demo.json", "alpaca", 999),
        ("instruct/alpaca_zh_demo.json", "alpaca", 1000),
        ("instruct/identity.json", "alpaca", 91),
        ("conversation/fastchat_dummy_conversation.json", "sharegpt", 500),
        ("pretrain/wiki_demo.txt", "text", 30),
        ("pretrain/c4_demo.jsonl", "text", 300),
    ],
)
def test_every_row_is_read(shared_data: Path, name: str, format_name: str, rows: int) -> None:
    loaded = load(shared_data / name)
    source = loaded.report.sources[0]
    assert (source.format, source.read, source.kept, loaded.rejected) == (format_name, rows, rows, [])
    kind = Document if format_name == "text" else Conversation
    assert all(isinstance(record, kind) for record in loaded.splits["train"])


def test_every_row_is_encoded(shared_data: Path, byte_tokenizer) -> None:
    from luthier.config.schema import MethodOptions, PluginOptions, RunConfig
    from luthier.data.preparing import prepare

    names = ("instruct/alpaca_en_demo.json", "conversation/fastchat_dummy_conversation.json")
    config = RunConfig(
        model="m",
        data=DataConfig(train=[str(shared_data / name) for name in names], template="chatml", cutoff_length=8192),
        stage=PluginOptions(name="sft"),
        method=MethodOptions(name="lora"),
    )
    split = prepare(config, byte_tokenizer).report.splits["train"]
    assert (split.examples, split.truncated, split.zero_target, split.ended) == (1499, 0, 0, 1.0)


@pytest.mark.parametrize("name", ["self_instruct_seed_tasks.jsonl", "belle_zh_seed_tasks.jsonl"])
def test_seed_tasks_are_not_mistaken_for_alpaca_rows(shared_data: Path, name: str) -> None:
    """They keep their answers in `instances`, a layout of its own."""
    with pytest.raises(DataError, match=r"no format matches .*: id, name, instruction, instances, is_classification"):
        load(shared_data / "instruct" / name)


def test_rows_with_tools_are_refused_by_name(shared_data: Path) -> None:
    path = shared_data / "conversation" / "glaive_toolcall_en_demo.json"
    with pytest.raises(DataError, match=r"191 rows can't be used:\n.*has tools \(in the field 'tools'\)"):
        load(path)
    loaded = load(path, invalid_rows="reject")
    assert len(loaded.rejected) == 191 and len(loaded.splits["train"]) == 109
