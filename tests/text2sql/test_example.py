"""examples/text2sql from its script to the verdicts, but for the training."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from luthier.cli import main

EXAMPLE = Path(__file__).parents[2] / "examples" / "text2sql"


def test_its_rows_are_made_and_its_own_queries_are_right(tmp_path: Path) -> None:
    subprocess.run([sys.executable, str(EXAMPLE / "make_data.py")], cwd=tmp_path, check=True, capture_output=True)
    data = tmp_path / "runs" / "text2sql" / "data"
    counts = []
    for split in ("train", "dev"):
        out = tmp_path / f"{split}.json"
        assert main(["sql", "prepare", str(data), "--split", split, "--out", str(out)]) == 0
        counts.append(len(json.loads(out.read_text(encoding="utf-8"))))
    assert counts == [560, 57]  # as its README says
    gold, scores = data / "dev_gold.sql", tmp_path / "scores.json"
    predictions = tmp_path / "pred.sql"
    lines = [line.split("\t")[0] for line in gold.read_text(encoding="utf-8").splitlines() if line.strip()]
    predictions.write_text("\n".join(["SELECT 1", *lines[1:]]) + "\n", encoding="utf-8")
    places = ["--database", str(data / "database"), "--tables", str(data / "tables.json")]
    arguments = ["sql", "evaluate", "--gold", str(gold), "--pred", str(predictions), *places, "--out", str(scores)]
    assert main([*arguments, "--jobs", "1"]) == 0
    items = json.loads(scores.read_text(encoding="utf-8"))["items"]
    assert [item["execution"] for item in items] == [False, *[True] * 56]
    assert [item["exact"] for item in items] == [False, *[True] * 56]
