"""examples/sentiment: its rows and config, and the accuracy it reaches on SST-2."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

import luthier
from luthier.config.loading import load, read_file
from luthier.data.preparing import load_records
from luthier.data.records import Labelled

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "examples" / "sentiment" / "config.yaml"
SST2 = ROOT.parent / "shared" / "data" / "classify"


def test_its_rows_are_read_as_labelled_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    loaded = load_records(load(CONFIG).data, seed=0, accepts=Labelled)
    counts = Counter(record.label for records in loaded.splits.values() for record in records)
    assert counts == {"positive": 50, "negative": 50} and not loaded.rejected


@pytest.mark.slow
@pytest.mark.timeout(2400)  # six minutes on two quiet cores
@pytest.mark.network
@pytest.mark.skipif(not SST2.is_dir(), reason="needs ../shared/data/classify, which a clone does not have")
def test_two_epochs_on_2000_rows_of_sst2(tmp_path: Path) -> None:
    config = read_file(CONFIG)
    config["data"] |= {
        "train": [{"path": str(SST2 / "sst2_train.tsv"), "max_samples": 2000}],
        "test": [str(SST2 / "sst2_dev.tsv")],
    }
    config["training"] |= {"num_train_epochs": 2, "save_strategy": "no"}
    del config["training"]["save_total_limit"]
    result = luthier.train({**config, "output_dir": str(tmp_path / "run")})
    assert len((tmp_path / "run" / "predictions.jsonl").read_text().splitlines()) == 872
    assert result.test_metrics["accuracy"] >= 0.80
