"""Plain lines where no terminal is, a live display where one is; standard output stays clean."""

from __future__ import annotations

import io
import re

import pytest

from luthier.foundation.progress import TrainingProgress, describe_values, human_seconds, is_terminal, progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_lines_are_few_and_the_last_step_has_one() -> None:
    out = io.StringIO()
    with TrainingProgress(100, stream=out, seconds_between_lines=3600) as progress:
        for step in range(1, 101):
            progress.update(step, {"loss": 2.0 / step, "tokens_per_second": 1234.4, "memory_bytes": 3 * 1024**3})
    first, last = out.getvalue().splitlines()
    assert first.startswith("step 1/100 | loss 2 | 1,234 tokens/s | ")
    assert first.endswith("left | 3.0 GiB")
    assert last.startswith("step 100/100 | loss 0.02 | ")


def test_earlier_values_stay_and_memory_is_measured() -> None:
    out = io.StringIO()
    with TrainingProgress(4, 2, stream=out, seconds_between_lines=0) as progress:
        progress.update(3, {"loss": 1.0})
        progress.update(4, {"eval_loss": 0.5})
    assert re.search(r"step 4/4 \| loss 1 \| eval_loss 0.5 \| 0:00 left \| [\d.]+ [MG]iB", out.getvalue())


def test_messages_stand_between_the_lines() -> None:
    out = io.StringIO()
    with TrainingProgress(1, stream=out) as progress:
        progress.message("saved [a]/b")
    assert out.getvalue() == "saved [a]/b\n"


def test_a_rank_that_is_not_the_first_is_silent() -> None:
    out = io.StringIO()
    with TrainingProgress(1, enabled=False, stream=out) as progress:
        progress.update(1, {"loss": 1.0})
        progress.message("x")
    assert out.getvalue() == ""


def test_a_terminal_gets_a_live_display(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "120")
    out = Terminal()
    with TrainingProgress(2, stream=out) as progress:
        progress.update(1, {"loss": 1.5})
        progress.message("saved [bold]")
        print("result")
        progress.update(2, {"loss": 1.25})
    assert "loss 1.25" in out.getvalue()
    assert "saved [bold]" in out.getvalue()
    assert "result" not in out.getvalue()
    assert capsys.readouterr().out == "result\n"
    assert not re.search(r"\x1b\[3\dm", out.getvalue()), "NO_COLOR asks for no colours"


def test_a_dumb_terminal_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "dumb")
    assert not is_terminal(Terminal())


def test_a_bar_without_a_terminal_is_silent_when_the_work_is_short() -> None:
    out = io.StringIO()
    with progress_bar("reading", 10, unit="rows", stream=out) as bar:
        bar.advance(10)
    assert out.getvalue() == ""


def test_a_bar_without_a_terminal_tells_how_far_it_is() -> None:
    out = io.StringIO()
    with progress_bar("fetching", 4 * 1024**2, unit="bytes", stream=out, seconds_between_lines=0) as bar:
        bar.advance(1024**2)
        bar.update(2 * 1024**2, total=2 * 1024**2)
    assert out.getvalue().splitlines() == [
        "fetching: 1.0 MiB of 4.0 MiB (25%)",
        "fetching: 2.0 MiB of 2.0 MiB (100%)",
        "fetching: 2.0 MiB of 2.0 MiB (100%)",
    ]


@pytest.mark.parametrize("total", [None, 3.0])
def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, total: float | None) -> None:
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with pytest.raises(KeyError), progress_bar("reading [x]", total, unit="rows", stream=out) as bar:
        bar.advance(2)
        raise KeyError
    assert "reading [x]" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h"), "the cursor is shown again"


def test_numbers_for_people() -> None:
    assert [human_seconds(value) for value in (0, 65, 3725)] == ["0:00", "1:05", "1:02:05"]
    assert describe_values({"loss": 1.23456, "mode": "bf16", "memory_bytes": 5}) == "loss 1.235 | mode bf16"
