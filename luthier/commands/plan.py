"""`luthier plan`: what a config will do, counted before any weight is read."""

from __future__ import annotations

import io
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luthier.commands import refusals
from luthier.data.report import DataReport


@dataclass
class PlanResult:
    """Counts of a run.

    Args:
        data: the data report's own values.
        remarks: what a person should know first, one sentence each.
    """

    trainable_parameters: int
    total_parameters: int
    examples: int
    examples_per_step: int
    steps_per_epoch: int | None
    total_steps: int
    warmup_steps: int
    learning_rate: float
    tokens_per_epoch: int
    targets_per_epoch: int
    data: dict[str, Any]
    remarks: list[str]
    report: DataReport = field(repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        values = {key: value for key, value in self.__dict__.items() if key != "report"}
        return values

    def table(self) -> str:
        """For the terminal."""
        from rich.console import Console
        from rich.table import Table

        console = Console(file=io.StringIO(), width=min(110, shutil.get_terminal_size((110, 24)).columns))
        run = Table("", "", title="Run", title_justify="left", show_header=False)
        share = self.trainable_parameters / self.total_parameters
        run.add_row("trained parameters", f"{self.trainable_parameters:,} of {self.total_parameters:,} ({share:.2%})")
        streamed = self.steps_per_epoch is None
        per_epoch = "" if streamed else f"{self.steps_per_epoch:,} per epoch, "
        run.add_row("optimizer steps", f"{self.total_steps:,} ({per_epoch}{self.warmup_steps:,} of warm-up)")
        of_all = "streamed, so not counted" if streamed else f"of {self.examples:,}"
        run.add_row("examples per step", f"{self.examples_per_step:,}{', ' if streamed else ' '}{of_all}")
        run.add_row("peak learning rate", f"{self.learning_rate:g}")
        if not streamed:
            run.add_row("per epoch", f"{self.tokens_per_epoch:,} tokens, {self.targets_per_epoch:,} of them trained")
        console.print(self.report.table())
        console.print(run)
        for remark in self.remarks:
            console.print(f"- {remark}", markup=False, highlight=False, soft_wrap=True)
        text: str = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
        return text


def plan(
    source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = (), *, trust_remote_code: bool = False
) -> PlanResult:
    """Count rows, tokens, targets, steps and parameters of a config; no weights are read."""
    config = refusals.read(source, overrides)
    refusals.check(config)

    from luthier.commands.setup import set_up
    from luthier.training.optimization import warmup_steps

    remarks: list[str] = []
    setup = set_up(config, trust_remote_code=trust_remote_code, say=remarks.append)
    shown = set(setup.data.report.remarks())  # the report's table prints those itself
    return PlanResult(
        trainable_parameters=setup.count.trainable,
        total_parameters=setup.count.total,
        examples=len(setup.data.train),
        examples_per_step=setup.schedule.examples_per_step,
        steps_per_epoch=setup.schedule.steps_per_epoch,
        total_steps=setup.schedule.total_steps,
        warmup_steps=warmup_steps(config.training.warmup_steps, setup.schedule.total_steps),
        learning_rate=config.learning_rate(),
        tokens_per_epoch=setup.data.train.tokens,
        targets_per_epoch=setup.data.train.targets,
        data=setup.data.report.as_dict(),
        remarks=[remark for remark in remarks if remark not in shown],
        report=setup.data.report,
    )
