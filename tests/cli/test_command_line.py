"""Exit statuses, messages, --json and speed of the command line."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from luthier import __version__, cli
from luthier.config.loading import load
from luthier.foundation.errors import Interrupted, UserError

EXAMPLE = str(Path(__file__).parents[2] / "examples" / "identity" / "config.yaml")


class Result:
    def as_dict(self) -> dict[str, Any]:
        return {"answer": "琴", "path": Path("/a")}

    def table(self) -> str:
        return "a table"


class Recorder:
    """Stands in for a verb's command: keeps its arguments, prints, returns or raises."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.args: tuple[Any, ...] = ()
        self.kwargs: dict[str, Any] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Result:
        self.args, self.kwargs = args, kwargs
        print("the command's own output")
        if self.error is not None:
            raise self.error
        return Result()


def stand_in(monkeypatch: pytest.MonkeyPatch, verb: str, error: BaseException | None = None) -> Recorder:
    """Put a recorder where `luthier.commands.<verb>.<verb>` is imported from."""
    recorder = Recorder(error)
    module = types.ModuleType(f"luthier.commands.{verb}")
    setattr(module, verb, recorder)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(importlib.import_module("luthier.commands"), verb, module, raising=False)
    return recorder


def test_done_is_0(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch, "train")
    assert cli.main(["train", EXAMPLE]) == 0


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("the row lacks a field.", "Add it."), 2, ["error: the row lacks a field.", "Add it."]),
        (Interrupted("stopped.", "luthier train --resume", 15), 143, ["stopped.", "--resume"]),
        (KeyboardInterrupt(), 130, []),
        (RuntimeError("odd"), 1, ["RuntimeError: odd", "report it", "--debug"]),
        (FileNotFoundError(2, "gone"), 1, ["FileNotFoundError"]),
        (SystemExit(3), 3, []),
    ],
)
def test_an_error_has_its_status_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    status: int,
    said: list[str],
) -> None:
    stand_in(monkeypatch, "train", error)
    assert cli.main(["train", EXAMPLE]) == status
    output = capsys.readouterr()
    assert "Traceback" not in output.err
    assert output.out == "the command's own output\n"
    for words in said:
        assert words in output.err


@pytest.mark.parametrize("arguments", [["--debug", "train", EXAMPLE], ["train", EXAMPLE, "--debug"]])
@pytest.mark.parametrize(("error", "status"), [(UserError("wrong."), 2), (RuntimeError("odd"), 1)])
def test_debug_shows_the_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    error: Exception,
    status: int,
) -> None:
    stand_in(monkeypatch, "train", error)
    assert cli.main(arguments) == status
    assert "Traceback (most recent call last)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["train", "--nothing"],
        ["export", "only-a-model"],
        ["chat", "m", "--top-p", "2"],
        ["chat", "m", "--json"],
        [],
    ],
)
def test_wrong_usage_is_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert "Usage:" in output.out + output.err


@pytest.mark.parametrize(
    ("verb", "arguments"),
    [("train", [EXAMPLE]), ("plan", [EXAMPLE]), ("chat", ["m", "--prompt", "Hi"]), ("export", ["m", "out"])],
)
def test_json_is_the_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], verb: str, arguments: list[str]
) -> None:
    stand_in(monkeypatch, verb)
    assert cli.main([verb, *arguments, "--json"]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last) == {"answer": "琴", "path": "/a"}


@pytest.mark.parametrize("error", [UserError("wrong.", "mend it."), RuntimeError("odd")])
def test_an_error_has_its_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: Exception
) -> None:
    stand_in(monkeypatch, "train", error)
    status = cli.main(["train", EXAMPLE, "--json"])
    value = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(value) == {"error", "remedy", "exit_status"}
    assert value["exit_status"] == status


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        (["predict", "m", "--data", "a.jsonl", "--out=~/there"], "there"),
        (["evaluate", "--compare", "a.json", "b.json", "--out=~/there"], "there"),
        (["evaluate", "--compare", "a.json", "b.json", "--html=~/there"], "there"),
        (["evaluate", "m", "--benchmark", "b", "--out=~/there"], "there"),
        (["evaluate", "--predictions=~/gone.jsonl"], "gone.jsonl"),
        (["evaluate", "m", "--benchmark=~/gone"], "gone"),
        (["data", "show", "model=m", "data.train=a.jsonl", "--html=~/there"], "there"),
        (["data", "check", "model=m", "data.train=a.jsonl", "--out=~/file"], "file"),
        (["sql", "evaluate", "--gold=g", "--pred=p", "--database=~/gone"], "gone"),
        (["sql", "evaluate", "--gold=g", "--pred=p", "--database=~/there", "--out=~/there"], "there"),
        (["sql", "evaluate", "--gold=~/gone", "--pred=p", "--database=~/there", "--benchmark=bird"], "gone"),
        (["sql", "evaluate", "--gold=g", "--pred=p", "--database=~/there", "--tables=~/gone"], "gone"),
    ],
)
def test_an_option_may_name_the_home_folder(
    arguments: list[str],
    place: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A shell expands `--out ~/x`, not `--out=~/x`; each is refused here, with the place that it looked at."""
    home = tmp_path / "home"
    (home / "there").mkdir(parents=True)
    (home / "file").write_text("{}")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 2
    assert str(home / place) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [home]


def test_a_setting_may_stand_where_the_config_does(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    recorder = stand_in(monkeypatch, "train")
    monkeypatch.setattr("luthier.commands.launching.processes_for", lambda *_, **__: 1)  # it reads the config
    cli.main(["train", "model=m", "data.train=a.jsonl", "--resume"])
    assert recorder.args == (None, ["model=m", "data.train=a.jsonl"])
    assert recorder.kwargs == {"resume": True, "overwrite": False, "trust_remote_code": False}
    cli.main(["train", EXAMPLE, "training.seed=3", "--overwrite", "--trust-remote-code"])
    assert recorder.args == (EXAMPLE, ["training.seed=3"])
    assert recorder.kwargs == {"resume": False, "overwrite": True, "trust_remote_code": True}
    odd_name = tmp_path / "lr=3.yaml"
    odd_name.write_text("model: m")
    cli.main(["train", str(odd_name)])
    assert recorder.args == (str(odd_name), [])
    cli.main(["train"])
    assert recorder.args == (None, [])


def test_chat_passes_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = stand_in(monkeypatch, "chat")
    options = "--prompt P --system S --compare-base --max-new-tokens 5 --temperature 0.5 --top-p 0.9 --seed 3 --template chatml"
    options += " --adapter a --adapter b=0.5 --combine cat --quantization nf4 --device-map auto --offload-folder o"
    assert cli.main(["chat", "run", *options.split(), "--trust-remote-code"]) == 0
    assert recorder.args == ("run",)
    assert recorder.kwargs == {
        "prompt": "P",
        "system": "S",
        "compare_base": True,
        "max_new_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 3,
        "template": "chatml",
        "adapters": ["a", "b=0.5"],
        "combine": "cat",
        "quantization": "nf4",
        "device_map": "auto",
        "offload_folder": "o",
        "trust_remote_code": True,
    }


def test_export_passes_every_option(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = stand_in(monkeypatch, "export")
    options = "--format adapter --max-shard-size 1GB --dtype float16 --overwrite --adapter a --device-map auto --offload-folder o"
    assert cli.main(["export", "run", "out", *options.split()]) == 0
    assert recorder.args == ("run", "out")
    assert recorder.kwargs == {
        "format": "adapter",
        "max_shard_size": "1GB",
        "dtype": "float16",
        "overwrite": True,
        "adapters": ["a"],
        "combine": "stack",
        "device_map": "auto",
        "offload_folder": "o",
        "trust_remote_code": False,
    }


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"luthier {__version__}\n"


def test_config_verbs(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "schema"]) == 0
    assert "training.learning_rate: null" in capsys.readouterr().out
    assert cli.main(["config", "schema", "--json"]) == 0
    assert "properties" in json.loads(capsys.readouterr().out)
    assert cli.main(["config", "explain", "training.seed", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["entries"][0]["default"] == "42"
    assert cli.main(["config", "explain", "nope"]) == 2


def test_a_bad_config_is_told_in_full(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    stand_in(monkeypatch, "plan")
    monkeypatch.setattr(
        sys.modules["luthier.commands.plan"], "plan", lambda source, overrides, **_: load(source, overrides)
    )
    assert cli.main(["plan", EXAMPLE, "training.sead=3", "data.cutoff_length=x"]) == 2
    error = capsys.readouterr().err
    assert "config.yaml has 2 problems:" in error
    assert "did you mean seed" in error
    assert "data.cutoff_length: " in error


def best_of(count: int, *arguments: str) -> float:
    """Seconds of computing of the fastest of `count` fresh processes: their time on the clock measures what else the machine does."""

    def computed() -> float:
        times = os.times()
        return times.children_user + times.children_system

    seconds = []
    for _ in range(count):
        before = computed()
        subprocess.run([sys.executable, "-m", "luthier.cli", *arguments], check=True, capture_output=True)
        seconds.append(computed() - before)
    return min(seconds)


def test_help_is_instant() -> None:
    assert best_of(3, "--help") < 0.3


@pytest.mark.parametrize(
    "arguments", [("config", "schema"), ("config", "explain", "method.rank"), ("config", "--help")]
)
def test_config_verbs_are_quick(arguments: tuple[str, ...]) -> None:
    assert best_of(3, *arguments) < 1.0


def test_a_reader_that_leaves_early_is_no_error_of_ours() -> None:
    done = subprocess.run(
        f"{sys.executable} -m luthier.cli config schema | head -1",
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith("# Every key")
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
