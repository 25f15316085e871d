"""The list of public sets: every entry can be written as it is shown, and rows of that shape are read by its format."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from luthier import cli
from luthier.config.data_section import DataEntry
from luthier.config.plugins import ENCODERS, FORMATS
from luthier.config.stage_encoders import STAGE_ENCODERS
from luthier.data.detection import choose_format
from luthier.data.known_sets import KnownSet, known_sets, matching
from luthier.data.locating import hub_id
from luthier.data.records import Origin, RawRow

SETS = [pytest.param(item, id=f"{item.id} {item.subset or ''}".strip()) for item in known_sets()]


@pytest.mark.parametrize("item", SETS)
def test_a_set_is_read_as_the_list_says(item: KnownSet) -> None:
    assert item.format in FORMATS.names() and item.stage in STAGE_ENCODERS
    assert hub_id(item.id) == item.id
    assert set(item.columns.values()) <= set(item.row)
    wanted = ENCODERS.load(STAGE_ENCODERS[item.stage].encoder).RECORD
    assert FORMATS.load(item.format).RECORD is wanted
    row = RawRow(item.row, Origin(item.id, 1))
    chosen = choose_format(DataEntry(**item.entry), [row], wanted)
    assert chosen.name == item.format
    assert all(isinstance(record, wanted) for record in chosen.convert_all(row))


def test_the_list_is_whole() -> None:
    keys = [(item.id, item.subset) for item in known_sets()]
    assert len(keys) >= 30 and len(keys) == len(set(keys))
    assert {"en", "zh"} <= {code for item in known_sets() for code in item.languages}
    assert {"sft", "dpo", "kto", "pretrain", "classification"} <= {item.stage for item in known_sets()}
    assert sum(item.checked for item in known_sets()) > len(keys) / 2
    assert all(item.rows > 0 and item.licence for item in known_sets())


def test_words_narrow_the_list() -> None:
    assert {item.format for item in matching(["dpo", "zh"])} == {"sharegpt_pair"}
    assert all("en" in item.languages for item in matching(["en"]))
    assert matching(["nothing like this"]) == []


def test_the_verb(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "list", "ultrachat", "--json"]) == 0
    told = capsys.readouterr()
    (item,) = json.loads(told.out.splitlines()[-1])["sets"]
    assert item["entry"] == {"path": "HuggingFaceH4/ultrachat_200k", "split": "train_sft"} and "row" not in item
    assert "train: {path: HuggingFaceH4/ultrachat_200k, split: train_sft}" in told.err
    assert cli.main(["data", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 * len(known_sets()) + 1
    assert cli.main(["data", "list", "klingon"]) == 2
    assert re.search(r"Purposes: .*Languages: en, ", capsys.readouterr().err)


def test_a_shown_entry_is_a_config(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    from luthier.config.loading import load

    assert cli.main(["data", "list"]) == 0
    shown = [line.strip() for line in capsys.readouterr().out.splitlines() if line.startswith("    train: ")]
    for line in shown:
        config = load({"model": "m", "data": yaml.safe_load(line), "output_dir": str(tmp_path)})
        assert config.data.train[0].path in line
