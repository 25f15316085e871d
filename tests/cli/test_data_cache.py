"""`luthier data cache list` and `clear`, as a user meets them."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.config.loading import load
from luthier.data.cache_entries import entry_folders, hold
from luthier.data.preparing import prepare
from tests.tiny import tiny_tokenizer, write_rows


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A cache with two entries."""
    monkeypatch.setenv("LUTHIER_DATA_CACHE", str(tmp_path / "cache"))
    tokenizer = tiny_tokenizer()
    for name, count in (("old.jsonl", 8), ("new.jsonl", 16)):
        rows = write_rows(tmp_path / name, count)
        prepare(load({"model": "tiny", "data": {"train": str(rows)}}), tokenizer)
    for path in entry_folders(tmp_path / "cache"):
        if "old.jsonl" in (path / "manifest.json").read_text():
            os.utime(path / "manifest.json", (time.time() - 10 * 86_400,) * 2)
    return tmp_path / "cache"


def called(capsys, *arguments: str) -> tuple[int, str, str]:
    status = main(["data", "cache", *arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def as_json(capsys, *arguments: str) -> dict[str, Any]:
    _, out, _ = called(capsys, *arguments, "--json")
    return dict(json.loads(out.splitlines()[-1]))


def test_list(folder, capsys) -> None:
    status, out, _ = called(capsys, "list")
    assert status == 0 and "2 entries" in out and str(folder) in out and "16 examples" in out and "old.jsonl" in out
    new, old = as_json(capsys, "list")["entries"]
    assert new["rows"] == {"train": 16} and new["tokens"]["train"] > 16 and new["paths"][0].endswith("new.jsonl")
    files = [file for file in (folder / new["key"]).iterdir() if file.name != "manifest.json"]
    assert new["bytes"] == sum(file.stat().st_size for file in files)
    assert old["used"] < new["used"] and not new["in_use"] and new["settings"]["cutoff_length"] == 1024


def test_an_empty_cache(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setenv("LUTHIER_DATA_CACHE", str(tmp_path / "none"))
    assert called(capsys, "list")[1].startswith("0 entries, 0 B, in ")
    assert called(capsys, "clear", "--all")[1].startswith("0 removed")
    assert not (tmp_path / "none").exists()


def test_verify_finds_what_sizes_do_not_tell(folder, capsys) -> None:
    assert called(capsys, "list", "--verify")[0] == 0
    tokens = entry_folders(folder)[0] / "train.tokens"
    content = bytearray(tokens.read_bytes())
    content[3] ^= 1
    tokens.write_bytes(content)
    assert called(capsys, "list")[0] == 0
    status, out, _ = called(capsys, "list", "--verify")
    assert status == 2 and "DAMAGED: train.tokens does not hold what was written" in out


def test_a_manifest_that_cannot_be_read_is_told(folder, capsys) -> None:
    (entry_folders(folder)[0] / "manifest.json").write_text("{")
    assert "DAMAGED: manifest.json can't be read" in called(capsys, "list")[1]
    assert as_json(capsys, "clear", "--all")["kept"] == [] and entry_folders(folder) == []


def test_clear_what_is_asked_for(folder, capsys) -> None:
    new, old = (entry["key"] for entry in as_json(capsys, "list")["entries"])
    assert as_json(capsys, "clear", "--older-than", "11")["removed"] == []
    cleared = as_json(capsys, "clear", "--older-than", "9")
    assert cleared["removed"] == [old] and cleared["bytes"] > 0
    assert as_json(capsys, "clear", new[:6])["removed"] == [new]
    assert entry_folders(folder) == []


def test_what_is_in_use_stays(folder, capsys) -> None:
    used = entry_folders(folder)[0]
    descriptor = hold(used)
    assert descriptor is not None
    try:
        assert "in use" in called(capsys, "list")[1]
        cleared = as_json(capsys, "clear", "--all")
        assert cleared["kept"] == [used.name] and len(cleared["removed"]) == 1 and entry_folders(folder) == [used]
    finally:
        os.close(descriptor)
    assert as_json(capsys, "clear", "--all")["removed"] == [used.name]


def test_leftovers_go_with_the_next_clearing(folder, capsys) -> None:
    for name in (".0123.building-ab", ".0123.removed-ab"):
        (folder / name).mkdir()
    as_json(capsys, "clear", "--older-than", "1000")
    assert [path.name for path in folder.iterdir() if path.is_dir() and path.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["clear"], "Give exactly one of them"),
        (["clear", "--all", "--older-than", "3"], "Give exactly one of them"),
        (["clear", "zz"], "no entry whose key begins with 'zz'"),
        (["clear", ""], "no entry whose key begins with ''"),
    ],
)
def test_what_cannot_be_meant(folder, capsys, arguments, told) -> None:
    status, _, err = called(capsys, *arguments)
    assert status == 2 and told in err and len(entry_folders(folder)) == 2
