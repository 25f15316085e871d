"""What the launcher of several processes hands on to them, signals and flags; and the command that goes on with a run."""

from __future__ import annotations

import json
import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from luthier import cli
from luthier.commands import launching
from luthier.commands.launching import command_line, resuming
from tests.tiny import config_for


class Child:
    """Stands in for a process that runs until it is killed."""

    def __init__(self, command: Sequence[str], **settings: Any) -> None:
        self.command, self.received = command, list[int]()

    def poll(self) -> None:
        return None

    def send_signal(self, number: int) -> None:
        self.received.append(number)

    def kill(self) -> None:
        self.received.append(signal.SIGKILL)


@pytest.mark.parametrize("ignored", [True, False])
def test_the_end_of_the_terminal_is_passed_on_but_under_nohup(monkeypatch: pytest.MonkeyPatch, ignored: bool) -> None:
    seen: list[Child] = []

    def watch(children: Sequence[Child]) -> int:
        seen.extend(children)
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGINT)
        return 0

    monkeypatch.setattr(launching.subprocess, "Popen", Child)
    monkeypatch.setattr(launching, "_watch", watch)
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        assert launching.launch(["train", "c.yaml"], 2) == 0
        assert signal.getsignal(signal.SIGHUP) is (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
    hung_up = [] if ignored else [signal.SIGTERM]
    assert [child.received for child in seen] == [[*hung_up, signal.SIGINT, signal.SIGKILL]] * 2


def test_a_config_from_a_pipe_is_refused_as_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as pipe:
        pipe.write("model: m\ndata: {train: no/such.jsonl}\n")
    with os.fdopen(reading):
        assert cli.main(["train", f"/dev/fd/{reading}"]) == 2
    assert f"the config '/dev/fd/{reading}' is no regular file." in capsys.readouterr().err


def test_every_flag_reaches_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Sequence[str]] = []
    monkeypatch.setattr(launching, "processes_for", lambda *_, **__: 2)
    monkeypatch.setattr(launching, "launch", lambda arguments, processes: given.append(arguments) or 5)
    flags = ["--resume", "--overwrite", "--trust-remote-code", "--json", "--debug"]
    assert cli.main(["train", "c.yaml", "training.seed=3", *flags]) == 5
    assert cli.main(["--debug", "train", "model=m", "--nproc-per-node", "2"]) == 5
    assert cli.main(["train", "c.yaml"]) == 5
    assert given == [
        ["train", "c.yaml", "training.seed=3", *flags],
        ["train", "model=m", "--debug"],
        ["train", "c.yaml"],
    ]


def test_the_command_that_goes_on_trusts_the_models_code_as_the_first_did(monkeypatch: pytest.MonkeyPatch) -> None:
    for trust, flag in {True: " --trust-remote-code", False: ""}.items():
        command = command_line("c.yaml", ["training.seed=3"], trust_remote_code=trust)
        assert resuming(command) == f"luthier train c.yaml training.seed=3{flag} --resume"
    monkeypatch.setenv(launching.PROCESSES, "2")
    command = command_line("c.yaml", [], trust_remote_code=True)
    assert resuming(command) == "luthier train c.yaml --nproc-per-node 2 --trust-remote-code --resume"


def test_the_command_leaves_out_a_token_and_nothing_else() -> None:
    for kept in (
        ["training.tokens_per_batch=auto"],
        ["model=m", "data.train=tokens.jsonl", "output_dir=runs/new-tokens"],
        ["model=smol-tokens", "training.seed=3"],
        ["model={name: m, tokenizer: t, from_scratch: true}"],
    ):
        assert shlex.split(command_line("c.yaml", kept)) == ["luthier", "train", "c.yaml", *kept]
    given = ["model={name: m, token: hf_SECRET, dtype: float32}", "model.token=hf_SECRET", "training.seed=3"]
    shown = shlex.split(command_line(None, given))
    assert shown == ["luthier", "train", "model={name: m, dtype: float32}", "training.seed=3"]


def test_a_run_notes_and_names_it_with_the_flag(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "c.json"
    file.write_text(json.dumps(config_for(tiny_llama, rows, tmp_path / "run", max_steps=1)))
    assert cli.main(["train", str(file), "--trust-remote-code"]) == 0
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    assert noted["command"] == f"luthier train {file} --trust-remote-code"
    capsys.readouterr()
    assert cli.main(["train", str(file), "--trust-remote-code"]) == 2
    assert f"go on with `luthier train {file} --trust-remote-code --resume`" in capsys.readouterr().err
