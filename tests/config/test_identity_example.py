"""The example that `make quickstart` trains on holds what its README says."""

from __future__ import annotations

import json
import re
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "identity"
CHINESE = re.compile(r"[\u4e00-\u9fff]")


def rows() -> list[dict[str, str]]:
    return [json.loads(line) for line in (EXAMPLE / "identity.jsonl").read_text(encoding="utf-8").splitlines()]


def test_the_rows_are_short_different_and_half_chinese() -> None:
    assert len(rows()) == 100
    assert len({(row["instruction"], row["input"]) for row in rows()}) == 100
    assert all(set(row) == {"instruction", "input", "output"} and 0 < len(row["output"]) < 120 for row in rows())
    assert sum(bool(CHINESE.search(row["instruction"])) for row in rows()) == 50


def test_most_answers_name_the_assistant_and_its_maker() -> None:
    answers = [row["output"] for row in rows()]
    assert sum("Strado" in answer for answer in answers) > 70
    assert sum("Luthier workshop" in answer or "琴匠工坊" in answer for answer in answers) > 60


def test_held_out_questions_are_not_trained() -> None:
    questions = (EXAMPLE / "held_out.txt").read_text(encoding="utf-8").splitlines()
    assert len(questions) == 3
    assert not set(questions) & {row["instruction"] for row in rows()}
