"""`data check` on the data sets people start from, with no `format:` given: no row is rejected without a reason told."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from luthier.commands.data_check import check

PLAIN = {"template": "chatml"}
TOOLS = {"template": "qwen2.5"}  # a family with a place for tools

# file, stage, data settings, rows, examples, findings
SETS: list[tuple[str, str, dict[str, Any], int, int, dict[str, int]]] = [
    ("instruct/alpaca_en_demo.json", "sft", PLAIN, 999, 999, {"duplicates": 14, "secrets": 1, "refusal": 25}),
    ("instruct/alpaca_zh_demo.json", "sft", PLAIN, 1000, 1000, {"duplicates": 8, "refusal": 23}),
    ("instruct/identity.json", "sft", PLAIN, 91, 91, {"near_duplicates": 1}),
    ("instruct/self_instruct_seed_tasks.jsonl", "sft", PLAIN, 175, 175, {"short_answer": 7}),
    ("instruct/belle_zh_seed_tasks.jsonl", "sft", PLAIN, 175, 175, {"short_answer": 5}),
    ("conversation/fastchat_dummy_conversation.json", "sft", PLAIN, 500, 500, {"near_duplicates": 411}),
    ("conversation/glaive_toolcall_en_demo.json", "sft", TOOLS, 300, 300, {"duplicates": 38}),
    ("preference/dpo_en_demo.json", "dpo", PLAIN, 300, 300, {"duplicates": 5}),
    ("preference/dpo_zh_demo.json", "dpo", PLAIN, 300, 300, {"duplicates": 11}),
    ("preference/kto_en_demo.json", "kto", PLAIN, 300, 300, {"secrets": 1}),
    ("pretrain/wiki_demo.txt", "pretrain", {}, 30, 0, {}),
    ("pretrain/c4_demo.jsonl", "pretrain", {}, 300, 0, {"emails": 7}),
    ("classify/sst2_train.tsv", "classification", {}, 6920, 6920, {"duplicates": 9}),
    ("classify/sst2_dev.tsv", "classification", {}, 872, 872, {}),
    ("classify/mrpc_sample.csv", "classification", {}, 6, 6, {}),
]


# these take longest with a tokenizer that knows few words, and are each of a kind with another set
SLOW = ("preference/dpo_zh_demo.json", "pretrain/wiki_demo.txt")
CASES = [pytest.param(*item, id=item[0], marks=[pytest.mark.slow] * (item[0] in SLOW)) for item in SETS]


@pytest.mark.parametrize(("name", "stage", "settings", "rows", "examples", "findings"), CASES)
def test_no_row_is_rejected(
    shared_data: Path,
    tokenizer_folder: Path,
    tmp_path: Path,
    name: str,
    stage: str,
    settings: dict[str, Any],
    rows: int,
    examples: int,
    findings: dict[str, int],
) -> None:
    data = {"train": str(shared_data / name), "cutoff_length": 200_000, **settings}
    config = {"model": str(tokenizer_folder), "stage": stage, "data": data, "output_dir": str(tmp_path / "out")}
    value = check(config, console=Console(file=io.StringIO())).as_dict()
    source, train = value["sources"][0], value["splits"]["train"]
    assert (source["rows_read"], source["rows_kept"], value["rejected"]) == (rows, rows, [])
    assert train["unrendered_rows"] == train["truncated_rows"] == train["zero_target_rows"] == 0
    assert train["examples"] == examples or stage == "pretrain"
    assert {name: value["findings"][name]["rows"] for name in findings} == findings
    assert "rejected" not in value["findings"] and sum(value["languages"]["train"].values()) >= rows


def test_questions_without_answers_are_rejected_with_the_reason(
    shared_data: Path, tokenizer_folder: Path, tmp_path: Path
) -> None:
    data = {"train": str(shared_data / "conversation" / "mt_bench_question.jsonl"), **PLAIN}
    config = {"model": str(tokenizer_folder), "data": data, "output_dir": str(tmp_path / "out")}
    value = check(config, console=Console(file=io.StringIO())).as_dict()
    (reason,) = value["rejected"]
    assert reason["rows"] == 80 and len(reason["examples"]) == 3
    assert "its fields are: question_id, category, turns, reference" in reason["reason"]
    assert len((tmp_path / "out" / "check" / "rejected.jsonl").read_text().splitlines()) == 80


def test_every_file_is_tried(shared_data: Path) -> None:
    folders = ("instruct", "conversation", "preference", "pretrain", "classify")
    there = {f"{name}/{path.name}" for name in folders for path in (shared_data / name).iterdir()}
    assert there == {item[0] for item in SETS} | {"conversation/mt_bench_question.jsonl"}
