"""What a person sees while luthier works: a live display on a terminal, a plain line now and then elsewhere.

Everything goes to standard error, so that standard output keeps what a verb reports. rich is imported only where a
live display is drawn; it obeys NO_COLOR itself.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Self, TextIO

from luthier.foundation.devices import resident_bytes
from luthier.foundation.files import human_bytes
from luthier.foundation.ranks import ranks

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0


def is_terminal(stream: TextIO) -> bool:
    """Whether a live display may be drawn on a stream."""
    return stream.isatty() and os.environ.get("TERM", "") not in ("dumb", "unknown")


def human_seconds(seconds: float) -> str:
    """`3725` -> `1:02:05`; `65` -> `1:05`."""
    whole = max(0, round(seconds))
    minutes, hours = whole // 60 % 60, whole // 3600
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def describe_values(values: Mapping[str, float | str]) -> str:
    """`{"loss": 1.25, "tokens_per_second": 310.2}` -> `loss 1.25 | 310 tokens/s`.

    `memory_bytes` is left out: it stands at the end of the line, measured where the caller gives none.
    """
    parts = []
    for name, value in values.items():
        if name == "memory_bytes":
            continue
        if isinstance(value, str):
            parts.append(f"{name} {value}")
        elif name == "tokens_per_second":
            parts.append(f"{value:,.0f} tokens/s")
        else:
            parts.append(f"{name} {value:.4g}")
    return " | ".join(parts)


class TrainingProgress:
    """Loss, tokens per second, time left and memory of a training loop. A context manager.

    Args:
        total_steps: optimizer steps of the whole run.
        start_step: steps done before (a resumed run).
        enabled: False draws nothing (every rank but the first).
        stream: where to write; standard error unless given.
        seconds_between_lines: how often a plain line is written where `stream` is no terminal.
    """

    def __init__(
        self,
        total_steps: int,
        start_step: int = 0,
        *,
        enabled: bool = True,
        stream: TextIO | None = None,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self.total_steps = total_steps
        self.start_step = start_step
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled
        self._seconds_between_lines = seconds_between_lines
        self._values: dict[str, float | str] = {}
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._started = self._last_line = time.monotonic()

    def __enter__(self) -> Self:
        self._started = time.monotonic()
        self._last_line = float("-inf")
        if self._enabled and is_terminal(self._stream):
            self._live, self._task = self._start_live()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, step: int, values: Mapping[str, float | str]) -> None:
        """Show that `step` is done.

        Args:
            step: optimizer steps done in the whole run.
            values: what changed (loss, tokens_per_second, learning_rate, memory_bytes, ...); earlier ones stay shown.
        """
        if not self._enabled:
            return
        self._values.update(values)
        if self._live is not None and self._task is not None:
            self._live.update(self._task, completed=step, values=self._text(step))
            return
        now = time.monotonic()
        if step < self.total_steps and now - self._last_line < self._seconds_between_lines:
            return
        self._last_line = now
        print(f"step {step}/{self.total_steps} | {self._text(step)}", file=self._stream, flush=True)

    def message(self, text: str) -> None:
        """Write a line that stays, above the live display where there is one."""
        if not self._enabled:
            return
        if self._live is not None:
            self._live.console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            print(text, file=self._stream, flush=True)

    def _text(self, step: int) -> str:
        done = step - self.start_step
        left = (time.monotonic() - self._started) / done * (self.total_steps - step) if done > 0 else None
        memory = self._values.get("memory_bytes")
        parts = [
            describe_values(self._values),
            "" if left is None else f"{human_seconds(left)} left",
            human_bytes(memory if isinstance(memory, (int, float)) else resident_bytes()),
        ]
        return " | ".join(part for part in parts if part)

    def _start_live(self) -> tuple[Progress, TaskID]:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        live = Progress(
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[values]}", markup=False),
            console=Console(file=self._stream),
            redirect_stdout=sys.stdout.isatty(),  # what a script reads from a pipe stays there
        )
        task = live.add_task("", total=self.total_steps, completed=self.start_step, values="")
        live.start()
        return live, task


class ProgressBar:
    """How far some work with a known or unknown end has come; made by `progress_bar`."""

    def __init__(self, description: str, total: float | None, unit: str, stream: TextIO, seconds: float) -> None:
        self.description = description
        self.total = total
        self.completed = 0.0
        self.live: Progress | None = None
        self.task: TaskID | None = None
        self._unit = unit
        self._stream = stream
        self._seconds_between_lines = seconds
        self._last_line = time.monotonic()
        self._wrote_a_line = False

    def advance(self, amount: float = 1) -> None:
        """`amount` more is done."""
        self.update(self.completed + amount)

    def update(self, completed: float, total: float | None = None) -> None:
        """`completed` is done in all; `total` corrects what there is to do."""
        self.completed = completed
        self.total = self.total if total is None else total
        if self.live is not None and self.task is not None:
            self.live.update(self.task, completed=completed, total=self.total)
            return
        now = time.monotonic()
        if now - self._last_line >= self._seconds_between_lines:
            self._last_line = now
            self._line()

    def finish(self) -> None:
        """A last line, if there was one before: short work says nothing where no terminal is."""
        if self.live is None and self._wrote_a_line:
            self._line()

    def silence(self) -> None:
        """Write no line: another rank does."""
        self._seconds_between_lines = float("inf")

    def _line(self) -> None:
        self._wrote_a_line = True
        done, total = self._amount(self.completed), "" if self.total is None else f" of {self._amount(self.total)}"
        share = f" ({self.completed / self.total:.0%})" if self.total else ""
        print(f"{self.description}: {done}{total}{share}", file=self._stream, flush=True)

    def _amount(self, count: float) -> str:
        return human_bytes(count) if self._unit == "bytes" else f"{count:,.0f} {self._unit}".rstrip()


@contextmanager
def progress_bar(
    description: str,
    total: float | None = None,
    *,
    unit: Literal["bytes", "rows", "files", ""] = "",
    stream: TextIO | None = None,
    seconds_between_lines: float = SECONDS_BETWEEN_LINES,
) -> Iterator[ProgressBar]:
    """Show the progress of long work: `with progress_bar("reading", rows) as bar: bar.advance()`.

    Args:
        description: what is being done.
        total: how much there is, in `unit`; None where it is not known.
        unit: "bytes" are shown as MiB and with their rate.
        stream: where to write; standard error unless given.
        seconds_between_lines: how often a plain line is written where `stream` is no terminal.
    """
    target = stream if stream is not None else sys.stderr
    bar = ProgressBar(description, total, unit, target, seconds_between_lines)
    if ranks().rank:
        bar.silence()
    elif is_terminal(target):
        bar.live, bar.task = _start_live_bar(bar, unit, target)
    try:
        yield bar
        bar.finish()
    finally:
        if bar.live is not None:
            bar.live.stop()


def _start_live_bar(bar: ProgressBar, unit: str, stream: TextIO) -> tuple[Progress, TaskID]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    amounts: list[ProgressColumn] = [MofNCompleteColumn(), TextColumn(unit)]
    if unit == "bytes":
        amounts = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    live = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        *amounts,
        TimeRemainingColumn(),
        console=Console(file=stream),
        redirect_stdout=sys.stdout.isatty(),
    )
    task = live.add_task(bar.description, total=bar.total)
    live.start()
    return live, task


def say(text: str) -> None:
    """A line for the person who waits, on standard error: standard output is for results. Of several ranks one speaks."""
    if ranks().rank == 0:
        print(text, file=sys.stderr, flush=True)
