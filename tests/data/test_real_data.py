"""The data sets people start from, with no `format:` given."""

from __future__ import annotations

from pathlib import Path

import pytest

from luthier.config.data_section import DataConfig
from luthier.config.plugins import FORMATS
from luthier.data.preparing import LoadedRecords, load_records
from luthier.foundation.errors import DataError


def load(path: Path, **settings) -> LoadedRecords:
    return load_records(DataConfig(train=str(path), **settings), seed=0)


@pytest.mark.parametrize(
    ("name", "format_name", "rows"),
    [
        ("instruct/alpaca_en_demo.json", "alpaca", 999),
        ("instruct/alpaca_zh_demo.json", "alpaca", 1000),
        ("instruct/identity.json", "alpaca", 91),
        ("instruct/self_instruct_seed_tasks.jsonl", "self_instruct", 175),
        ("instruct/belle_zh_seed_tasks.jsonl", "self_instruct", 175),
        ("conversation/glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("preference/dpo_en_demo.json", "sharegpt_pair", 300),
        ("preference/dpo_zh_demo.json", "sharegpt_pair", 300),
        ("preference/kto_en_demo.json", "kto", 300),
        ("classify/sst2_train.tsv", "classification", 6920),
        ("classify/sst2_dev.tsv", "classification", 872),
        ("classify/mrpc_sample.csv", "classification", 6),
        ("conversation/fastchat_dummy_conversation.json", "sharegpt", 500),
        ("pretrain/wiki_demo.txt", "text", 30),
        ("pretrain/c4_demo.jsonl", "text", 300),
    ],
)
def test_every_row_is_read(shared_data: Path, name: str, format_name: str, rows: int) -> None:
    loaded = load(shared_data / name)
    source = loaded.report.sources[0]
    assert (source.format, source.read, source.kept, loaded.rejected) == (format_name, rows, rows, [])
    kind = FORMATS.load(format_name).RECORD
    assert all(isinstance(record, kind) for record in loaded.splits["train"])


def test_every_row_is_encoded(shared_data: Path, byte_tokenizer) -> None:
    from luthier.config.schema import RunConfig
    from luthier.config.sections import MethodOptions, PluginOptions
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


def test_questions_without_answers_are_refused_with_their_fields(shared_data: Path) -> None:
    with pytest.raises(DataError, match=r"no format matches .*: question_id, category, turns, reference"):
        load(shared_data / "conversation" / "mt_bench_question.jsonl")
