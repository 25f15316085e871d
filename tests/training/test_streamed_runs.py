"""Runs over a stream: the losses of the same rows in memory; killed and resumed, the same bits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from tests.tiny import config_for, write_rows
from tests.training.test_resume import launch, traces


def config_of(tiny_llama: Path, folder: Path, *, streaming: bool, **data: Any) -> dict[str, Any]:
    """Steps of 8 of 42 rows, so six an epoch, the last of two rows; two of the rows are bad."""
    path = folder / "rows.jsonl"
    if not path.exists():
        write_rows(path, count=42)
        path.write_text(path.read_text() + '{"instruction": 1, "output": "b"}\n{"instruction": "c", "output": 2}\n')
    held = write_rows(folder / "held.jsonl", count=6, seed=5)
    settings = {"max_steps": 15, "gradient_accumulation_steps": 2, "save_steps": 2, "logging_steps": 1}
    config = config_for(tiny_llama, path, folder / "run", **settings, eval_strategy="steps", eval_steps=5)
    config["data"] |= {"validation": str(held), "invalid_rows": "reject", "streaming": streaming, **data}
    return config


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line.get("loss", line.get("eval_loss")) for line in lines]


def test_the_losses_are_those_of_rows_in_memory(
    tiny_llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    luthier.train(config_of(tiny_llama, tmp_path / "a", streaming=False, shuffle=False))
    capsys.readouterr()
    result = luthier.train(config_of(tiny_llama, tmp_path / "b", streaming=True, shuffle=False, buffer_size=10))
    said = capsys.readouterr().err
    assert losses(tmp_path / "b" / "run") == pytest.approx(losses(tmp_path / "a" / "run"), rel=1e-6)
    assert result.steps == 15
    assert said.count("train: 1 x left out: the field 'output' is int 2, not text") == 1
    rejected = [json.loads(line) for line in (tmp_path / "b" / "run" / "rejected.jsonl").read_text().splitlines()]
    assert [line["row"] for line in rejected] == [43, 44]


@pytest.mark.parametrize(
    "died",
    ["step:6", pytest.param("step:4", marks=pytest.mark.slow), pytest.param("writing:3", marks=pytest.mark.slow)],
)
def test_killed_and_resumed_it_ends_with_the_same_bits(died: str, tiny_llama: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir(), (tmp_path / "broken").mkdir()
    whole = config_of(tiny_llama, tmp_path / "whole", streaming=True, buffer_size=10)
    luthier.train(whole)
    broken = config_of(tiny_llama, tmp_path / "broken", streaming=True, buffer_size=10)
    assert launch(broken, tmp_path, "--die-at", died).returncode == -9
    done = launch(broken, tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert traces(tmp_path / "broken" / "run") == traces(tmp_path / "whole" / "run")
    rejected = [(folder / "run" / "rejected.jsonl").read_text() for folder in (tmp_path / "broken", tmp_path / "whole")]
    assert [json.loads(line)["row"] for line in rejected[0].splitlines()] == [43, 44]
    assert rejected[0].replace("broken", "whole") == rejected[1]


def test_resumed_at_a_windows_edge_a_bad_row_is_written_once(tiny_llama: Path, tmp_path: Path) -> None:
    """Windows of 8 rows, one of each bad; a step takes 8 examples of 7, so the edge falls on a step's end at times."""
    config = config_of(tiny_llama, tmp_path, streaming=True, buffer_size=9, shuffle=False)
    rows = [{"instruction": f"q{row}", "output": "a" if row % 9 else 5} for row in range(81)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config["training"] |= {"max_steps": 9, "save_steps": 1, "save_total_limit": None, "gradient_accumulation_steps": 2}
    for steps in (1, 4, 9):
        config["training"]["max_steps"] = steps
        luthier.train(config, resume=True)
    rejected = [json.loads(line)["row"] for line in (tmp_path / "run" / "rejected.jsonl").read_text().splitlines()]
    assert rejected == sorted(set(rejected))
    assert len(rejected) == 9
