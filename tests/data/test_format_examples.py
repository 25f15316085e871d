"""examples/formats: one small file of our own for each format, found out without being named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from luthier.cli import main
from luthier.config.data_section import DataEntry
from luthier.config.loading import load
from luthier.config.plugins import ENCODERS, FORMATS
from luthier.config.stage_encoders import encoder_of
from luthier.data.detection import choose_format
from luthier.data.locating import locate
from luthier.data.reading import read_files

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "formats"
FILES = sorted(FOLDER.glob("*.jsonl"))


def test_every_format_has_an_example() -> None:
    assert {path.stem for path in FILES} >= set(FORMATS.names())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_format_is_found_out(path: Path) -> None:
    rows = read_files(locate(DataEntry(path=str(path))))
    chosen = choose_format(DataEntry(path=str(path)), rows)
    assert chosen.name == path.stem.removesuffix("_tools") and len(rows) == 3
    assert all(isinstance(chosen.convert(row), chosen.record) for row in rows)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_configs_load(path: Path) -> None:
    """Each names its own file and a stage that learns such rows."""
    config = load(path, for_training=False)
    (entry,) = config.data.train
    assert Path(entry.path).stem == path.stem
    rows = read_files(locate(DataEntry(path=str(FOLDER / f"{path.stem}.jsonl"))))
    learnt = ENCODERS.load(encoder_of(config.stage).encoder).RECORD
    assert choose_format(DataEntry(path=entry.path), rows).record is learnt


def test_every_example_has_a_config() -> None:
    assert {path.stem for path in FOLDER.glob("*.yaml")} == {path.stem for path in FILES}


@pytest.mark.parametrize("config", sorted(FOLDER.glob("*.yaml")), ids=lambda path: path.stem)
def test_rows_are_shown_as_a_user_would(
    config: Path, tmp_path: Path, tiny_llama: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """From a folder that holds nothing but the examples, with another model."""
    shutil.copytree(FOLDER, tmp_path / "examples" / "formats")
    monkeypatch.chdir(tmp_path)
    status = main(["data", "show", f"examples/formats/{config.name}", f"model={tiny_llama}", "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    shown = json.loads(printed.out.splitlines()[-1])
    (source,) = shown["sources"]
    assert source["rows_kept"] == source["rows_read"] == 3 and not shown["left_out"]
    assert f"format {config.stem.removesuffix('_tools')} (" in printed.err
    assert len(shown["examples"]) == (1 if source["format"] == "text" else 3)
    assert {path.name for path in tmp_path.iterdir()} == {"examples"}
