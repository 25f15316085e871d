"""The cache of tokenized data: made once, read as it was made, never trusted blindly, and never in the way."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from luthier.config.data_section import DataConfig
from luthier.config.schema import RunConfig
from luthier.config.sections import MethodOptions, PluginOptions
from luthier.config.training_section import TrainingConfig
from luthier.data import cache, cache_entries, preparing
from luthier.data.preparing import PreparedData, prepare
from luthier.foundation.errors import DataError

ROWS = [{"instruction": f"question {i}", "output": f"answer {i} " * (i % 7 + 1)} for i in range(60)]
BAD = [{"instruction": "lone"}, {"instruction": "", "output": "x"}]


def config(train: Any, **data: Any) -> RunConfig:
    return RunConfig(
        model="m",
        data=DataConfig(train=train, **{"template": "chatml", **data}),
        stage=PluginOptions(name="sft"),
        method=MethodOptions(name="lora"),
        training=TrainingConfig(**({"eval_strategy": "epoch"} if "validation" in data else {})),
    )


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("LUTHIER_DATA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def made(byte_tokenizer, folder, said) -> Callable[..., PreparedData]:
    def make(train: Any, **data: Any) -> PreparedData:
        return prepare(config(train, **data), byte_tokenizer, say=said.append)

    return make


def content(prepared: PreparedData) -> tuple[Any, ...]:
    sets = [list(part) for part in (prepared.train, prepared.validation, prepared.test)]
    rejected = [(str(item.origin), item.reason, dict(item.values)) for item in prepared.rejected]
    return sets, prepared.report.as_dict(), rejected, prepared.fingerprint


def no_reading(monkeypatch) -> None:
    def refuse(*given: Any) -> None:
        raise AssertionError("rows are read again")

    monkeypatch.setattr(preparing, "load_records", refuse)


def entries(folder: Path) -> list[Path]:
    return cache_entries.entry_folders(folder)


def test_the_second_start_reads_what_the_first_made(write, made, said, monkeypatch) -> None:
    rows = [*ROWS, *BAD, {"instruction": "long", "output": "word " * 500}, {"instruction": "x", "output": "\ud800"}]
    path = str(write("a.json", rows))
    settings = {"validation": 5, "test": 0.1, "invalid_rows": "reject", "over_length": "drop", "cutoff_length": 64}
    first = made(path, **settings)
    assert first.rejected and said == []
    no_reading(monkeypatch)
    assert content(made(path, **settings)) == content(first)
    assert said[-1].startswith("data: from the cache, prepared 20")


def test_without_a_cache_the_data_are_the_same(write, made, folder) -> None:
    path = str(write("a.json", ROWS))
    assert content(made(path, cache=False)) == content(made(path))
    assert len(entries(folder)) == 1
    uncached = made(str(write("b.json", ROWS[:5])), cache=False)
    assert len(uncached.train) == 5 and len(entries(folder)) == 1


def test_numbers_are_not_taken_for_the_classes_that_the_same_file_was_read_with(
    write, byte_tokenizer, folder, said
) -> None:
    """Classification finds the classes in the rows, and keeps their numbers, 0 and 1; regression wants the labels."""
    path = write("rows.jsonl", "".join(f'{{"text": "text {n}", "label": {n % 2 + 3.5}}}\n' for n in range(4)))
    seen = []
    for options in ({}, {"labels": ()}, {}):
        given = config([{"path": str(path)}], template="auto")
        made = prepare(given, byte_tokenizer, encoder="labelled", encoder_options=options, say=said.append)
        seen.append((made.report.labels, made.train.numbers("label").tolist()))
    assert seen == [(("3.5", "4.5"), [0, 1, 0, 1]), ((), [3.5, 4.5, 3.5, 4.5]), seen[0]]
    assert len(said) == 1 and "from the cache" in said[0]


def test_a_moved_file_is_found_under_its_new_name(write, made, tmp_path, monkeypatch) -> None:
    rows = [*ROWS, *BAD]
    first = made(str(write("a.json", rows)), invalid_rows="reject")
    (tmp_path / "a.json").rename(tmp_path / "b.json")
    no_reading(monkeypatch)
    moved = made(str(tmp_path / "b.json"), invalid_rows="reject")
    assert {example.origin.path for example in moved.train} == {str(tmp_path / "b.json")}
    assert {item.origin.path for item in moved.rejected} == {str(tmp_path / "b.json")}
    assert moved.report.sources[0].path == str(tmp_path / "b.json")
    assert [example.sequences for example in moved.train] == [example.sequences for example in first.train]


def test_copies_are_told_apart_from_one_file_named_twice(write, made) -> None:
    one, copy = str(write("a.json", ROWS[:2])), str(write("b.json", ROWS[:2]))
    assert [example.origin.path for example in made([one, one]).train] == [one] * 4
    assert [example.origin.path for example in made([one, copy]).train] == [one, one, copy, copy]


@pytest.mark.parametrize("fault", ["cut", "missing", "manifest", "version"])
def test_a_damaged_entry_is_made_anew(fault, write, made, folder, said) -> None:
    path = str(write("a.json", ROWS))
    first = content(made(path))
    (entry,) = entries(folder)
    tokens, manifest = entry / "train.tokens", entry / "manifest.json"
    if fault == "cut":
        os.truncate(tokens, 10)
    elif fault == "missing":
        tokens.unlink()
    elif fault == "manifest":
        manifest.write_text(manifest.read_text()[:100])
    else:
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 0}))
    assert content(made(path)) == first
    assert "is damaged" in said[-1] and "made anew" in said[-1]
    made(path)
    assert said[-1].startswith("data: from the cache")


def test_files_that_change_while_they_are_read_are_refused(write, made, folder, monkeypatch) -> None:
    path = write("a.json", ROWS)
    load = preparing.load_records

    def change(*given: Any) -> Any:
        loaded = load(*given)
        path.write_text(json.dumps(ROWS[:-1]))
        return loaded

    monkeypatch.setattr(preparing, "load_records", change)
    with pytest.raises(DataError, match="were written to while they were read"):
        made(str(path))
    assert entries(folder) == [] and not list(folder.glob(".*building*"))


def test_a_cache_that_cannot_be_written_is_done_without(write, made, tmp_path, said, monkeypatch) -> None:
    path = str(write("a.json", ROWS))
    (tmp_path / "file").touch()
    monkeypatch.setenv("LUTHIER_DATA_CACHE", str(tmp_path / "file" / "cache"))
    assert len(made(path).train) == 60
    assert len(said) == 1 and "prepared without a cache" in said[0] and "LUTHIER_DATA_CACHE" in said[0]


def test_a_full_disk_is_no_reason_to_stop(write, made, folder, said, monkeypatch) -> None:
    path = str(write("a.json", ROWS))

    def full(self: Any, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(cache_entries._StampedFile, "write", full)
        first = made(path)
    assert "No space left" in said[0] and len(first.train) == 60
    assert entries(folder) == [] and not list(folder.glob(".*building*"))
    assert content(made(path)) == content(first)


def test_a_remade_entry_that_is_in_use_stays_readable(write, made, folder) -> None:
    path = str(write("a.json", ROWS))
    first = made(path)
    assert cache_entries.in_use(entries(folder)[0]) and not cache_entries.remove(entries(folder)[0])
    del first
    assert not cache_entries.in_use(entries(folder)[0]) and cache_entries.remove(entries(folder)[0])
    assert entries(folder) == []


# a user's script, unguarded: other processes must not run it again. Prints what was said, as JSON
SCRIPT = """
import json, pickle, sys, time
from luthier.config.loading import load
from luthier.data import cache_entries, encoding
from luthier.data.preparing import prepare
path, tokenizer, seconds, workers = sys.argv[1:]
encoding.BLOCK_RECORDS = 10
add = cache_entries._SplitFiles.add
def slowly(self, block):
    print("writing", flush=True)
    time.sleep(float(seconds))
    add(self, block)
cache_entries._SplitFiles.add = slowly
config = load({
    "model": "m",
    "data": {"train": path, "template": "chatml", "preprocessing_num_workers": int(workers)},
})
said = []
with open(tokenizer, "rb") as stream:
    prepared = prepare(config, pickle.load(stream), say=said.append)
print(json.dumps([len(prepared.train), prepared.train.tokens, said]))
"""


@pytest.fixture
def start(write, byte_tokenizer, tmp_path) -> Callable[..., subprocess.Popen[str]]:
    """Starts a process that prepares the rows, each block written so many seconds after the one before."""
    (tmp_path / "tokenizer.pickle").write_bytes(pickle.dumps(byte_tokenizer))
    (tmp_path / "script.py").write_text(SCRIPT)
    given = [str(write("a.json", ROWS)), str(tmp_path / "tokenizer.pickle")]

    def begin(seconds: float = 0, workers: int = 1) -> subprocess.Popen[str]:
        command = [sys.executable, str(tmp_path / "script.py"), *given, str(seconds), str(workers)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)

    return begin


def result(process: subprocess.Popen[str]) -> Any:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    return json.loads(out.splitlines()[-1])


def test_of_several_processes_one_makes_the_data_and_the_others_wait(start, folder) -> None:
    results = [result(process) for process in [start(0.5) for _ in range(3)]]
    assert len({(count, tokens) for count, tokens, _ in results}) == 1 and results[0][0] == 60
    makers = [said for _, _, said in results if not any(line.startswith("data: from the cache") for line in said)]
    assert len(makers) == 1 and len(entries(folder)) == 1
    assert any("another process prepares the same data" in line for _, _, said in results for line in said)


def test_a_killed_process_leaves_nothing_that_is_read(start, folder) -> None:
    process = start(10, workers=2)
    assert process.stdout is not None and process.stdout.readline().strip() == "writing"
    children = subprocess.run(
        ["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert len(children) == 2
    process.kill()
    process.communicate()
    assert entries(folder) == [] and list(folder.glob(".*building*"))
    deadline = time.monotonic() + 20
    while any(Path("/proc", child).exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path("/proc", child).exists() for child in children), "processes outlive their parent"
    count, _, said = result(start())
    assert count == 60 and len(entries(folder)) == 1 and not list(folder.glob(".*building*"))
    assert not any("damaged" in line for line in said)


def test_ctrl_c_ends_all(start, folder) -> None:
    process = start(10, workers=2)
    assert process.stdout is not None and process.stdout.readline().strip() == "writing"
    os.killpg(process.pid, signal.SIGINT)
    process.communicate(timeout=180)
    assert process.returncode != 0
    assert entries(folder) == [] and not list(folder.glob(".*building*"))


def test_the_folder_stands_in_luthiers_home_unless_told_otherwise(tmp_path, monkeypatch) -> None:
    monkeypatch.delenv("LUTHIER_DATA_CACHE")
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path))
    assert cache.cache_folder() == tmp_path / "data"
