"""The verdicts of Spider's official scripts on a public model's predictions for the whole dev set."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from luthier.commands.sql_evaluate import EvaluatedQueries, evaluate

# easy, medium, hard, extra, all: as the official scripts print them
EXACT = [0.758, 0.552, 0.402, 0.217, 0.522]
EXECUTION = [0.762, 0.646, 0.552, 0.301, 0.603]


def measured(folder: Path, predictions: Path) -> EvaluatedQueries:
    return evaluate(folder / "dev_gold.sql", predictions, folder / "database", folder / "tables.json", jobs=2)


def test_every_verdict_is_the_official_one(real_spider: Path) -> None:
    predictions = real_spider / "predictions" / "dbgpthub_lora32.sql"
    began = time.monotonic()
    result = measured(real_spider, predictions)
    assert time.monotonic() - began < 60  # seconds for all of them; 3 on a machine that does nothing else
    official = [json.loads(line) for line in predictions.with_suffix(".official.jsonl").read_text().splitlines()]
    ours = [(item.index, item.verdict.hardness, item.verdict.exact, item.verdict.execution) for item in result.items]
    assert ours == [(row["idx"], row["hardness"], row["exact"], row["exec"]) for row in official]
    unread = [item.verdict.parts["select"].predicted for item in result.items]
    assert unread == [row["parsed"] for row in official]
    levels = result.summary["levels"].values()
    assert [level["count"] for level in levels] == [248, 446, 174, 166, 1034]
    assert [level["exact"] for level in levels] == pytest.approx(EXACT, abs=5e-4)
    assert [level["execution"] for level in levels] == pytest.approx(EXECUTION, abs=5e-4)
    # whatever is wrong has a reason
    assert all(
        bool(item.verdict.reason) != bool(item.verdict.exact and item.verdict.execution) for item in result.items
    )


def test_gold_against_gold_is_one(real_spider: Path) -> None:
    summary = measured(real_spider, real_spider / "dev_gold.sql").summary
    assert (summary["count"], summary["exact"], summary["execution"]) == (1034, 1.0, 1.0)
