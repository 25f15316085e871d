"""What the launcher of several processes hands on to them: signals, and flags."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from typing import Any

import pytest

from luthier import cli
from luthier.commands import launching


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


def test_every_flag_reaches_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Sequence[str]] = []
    monkeypatch.setattr(launching, "processes_for", lambda *_: 2)
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
