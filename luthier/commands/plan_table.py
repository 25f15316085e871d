"""A plan for the terminal."""

from __future__ import annotations

import io
import shutil
import textwrap
from typing import TYPE_CHECKING

from luthier.foundation.files import human_bytes
from luthier.foundation.progress import human_seconds

if TYPE_CHECKING:
    from rich.table import Table

    from luthier.commands.plan import PlanResult
    from luthier.planning.batch_tokens import BatchTokens
    from luthier.planning.planner import Plan
    from luthier.planning.taken import Memory

WIDTH = 110


def table(result: PlanResult) -> str:
    """The whole plan as text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    if result.report is not None:
        console.print(result.report.table())
    console.print("Run")
    console.print(_run(result))
    if result.plan.memory is not None:
        # not the table's title, which is broken to the table's width
        each = "each of " if result.plan.hardware.count > 1 else ""
        shared = "" if result.plan.strategy.name == "single" else f", {result.plan.strategy.name}"
        console.print(f"Memory of {each}{result.plan.hardware}{shared}", markup=False, soft_wrap=True)
        console.print(_memory(result.plan, result.plan.memory))
    verdict = _verdict(result)
    for line in [*([verdict] if verdict else []), *(f"- {remark}" for remark in result.remarks)]:
        # by words, and no path or setting in two
        folded = textwrap.fill(
            line, console.width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
        console.print(folded, markup=False, highlight=False, soft_wrap=True)
    text: str = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
    return text


def _run(result: PlanResult) -> Table:
    from rich.table import Table

    plan = result.plan
    run = Table("", "", show_header=False)
    share = result.trainable_parameters / result.total_parameters
    run.add_row("trained parameters", f"{result.trainable_parameters:,} of {result.total_parameters:,} ({share:.2%})")
    if result.total_steps is not None:
        per_epoch = "" if result.steps_per_epoch is None else f"{result.steps_per_epoch:,} per epoch, "
        run.add_row("optimizer steps", f"{result.total_steps:,} ({per_epoch}{result.warmup_steps:,} of warm-up)")
    counted = result.steps_per_epoch is not None
    of_all = f" of {result.examples:,}" if counted else ", not counted beforehand"
    run.add_row("examples per step", f"{result.examples_per_step:,}{of_all}")
    run.add_row("peak learning rate", f"{result.learning_rate:g}, {result.learning_rate_origin}")
    if counted:
        trained = f", {result.targets_per_epoch:,} of them trained" if result.targets_per_epoch else ""
        run.add_row("per epoch", f"{result.tokens_per_epoch:,} tokens{trained}")
    if plan.merged is not None:
        run.add_row("tokens of a batch", f"at most {plan.merged.tokens:,}, for a peak of {_of_budget(plan.merged)}")
    run.add_row("longest batch", f"{plan.batch_tokens:,} tokens, {plan.route} route")
    if plan.shared >= 0.005:
        run.add_row("shared beginnings", f"{plan.shared:.0%} of the tokens need not be computed")
    if plan.time is not None:
        time = plan.time
        how = f"{time.measured_share:.0%} of it timed here" if time.measured_share else "reckoned"
        run.add_row("time per step", f"{time.seconds_per_step:.3g} s, {time.tokens_per_second:,.0f} tokens/s ({how})")
        if time.seconds_per_run:
            run.add_row("time of the run", f"{human_seconds(time.seconds_per_run)}, evaluation and saving left out")
    if plan.trunk_layer:
        run.add_row("trunk", f"{human_bytes(plan.disk.trunk)} of states below layer {plan.trunk_layer}, computed once")
    run.add_row("disk", f"{human_bytes(plan.disk.checkpoint)} a checkpoint, {human_bytes(plan.disk.total)} in all")
    return run


def _of_budget(merged: BatchTokens) -> str:
    return f"{human_bytes(merged.peak_bytes)} of {human_bytes(merged.budget_bytes)}"


def _memory(plan: Plan, memory: Memory) -> Table:
    from rich.table import Table

    device = plan.hardware.device
    found = Table("", "", show_header=False)
    found.columns[1].justify = "right"
    rows = {
        "weights": memory.weights,
        "optimizer states": memory.optimizer_states,
        "gradients": memory.gradients,
        "activations": memory.activations,
        "output head": memory.head,
        "the optimizer's update": memory.update,
        "from other devices": memory.gathered,
        "lost in the allocator": memory.allocator,
        "the process itself": memory.fixed,
    }
    for name, size in rows.items():
        if size:
            found.add_row(name, human_bytes(size))
    found.add_section()
    found.add_row("peak", f"{human_bytes(memory.peak)} of {human_bytes(device.memory_bytes)}")
    if memory.host:
        found.add_row("in the host's memory", human_bytes(memory.host * plan.hardware.count))
    return found


def _verdict(result: PlanResult) -> str:
    """Whether it fits, and what to change if not."""
    plan = result.plan
    if plan.memory is None:
        return ""
    size = human_bytes(plan.hardware.device.memory_bytes)
    if plan.fits:
        return "It fits."
    if plan.fits_host is False:
        return f"It does not fit: {human_bytes(plan.host_bytes)} in the host's memory, which has {human_bytes(plan.hardware.host_bytes)}."
    if plan.held:
        return "It does not fit what training.tokens_per_batch auto plans with, and a run would be refused: see below."
    text = f"It does not fit: {human_bytes(plan.memory.peak)} of {size}"
    if result.advice is None:
        return f"{text}, and nothing that was tried makes it smaller."
    settings = " ".join(result.advice.settings)
    peak = human_bytes(result.advice.peak_bytes)
    return f"{text}; with {settings} {peak}" + ("." if result.advice.fits else ", which is still too much.")
