"""Evaluations and comparisons for the terminal."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from luthier.evaluation.measuring import LOSS, Number

if TYPE_CHECKING:
    from rich.console import RenderableType

    from luthier.commands.harness import HarnessResult
    from luthier.evaluation.comparison import Comparison
    from luthier.evaluation.results import Evaluated

WIDTH = 110


def evaluation_table(found: Evaluated) -> str:
    """Sources and numbers."""
    from rich.table import Table

    parts: list[Any] = []
    measured = [number for number in found.numbers if number.name != LOSS and number.by_source]
    if any("loss" in source for source in found.sources) or measured:
        table = Table(title=f"{found.model}: sources", title_justify="left")
        table.add_column("source", overflow="fold")
        with_loss = any("loss" in source for source in found.sources)
        perplexity = any("perplexity" in source for source in found.sources)
        loss_columns = ["targets", "loss", *(["perplexity"] if perplexity else [])] if with_loss else []
        for column in ["rows", *loss_columns, *(number.name for number in measured)]:
            table.add_column(column, justify="right")
        for source in found.sources:
            cells = [str(source["source"]), f"{source['rows']:,}"]
            for column in loss_columns:
                value = source.get(column)
                cells.append("" if value is None else f"{value:,}" if column == "targets" else f"{value:,.4g}")
            table.add_row(*cells, *(shown(number.by_source.get(str(source["source"]))) for number in measured))
        parts.append(table)
    if found.numbers:
        confidence = found.settings.get("confidence")
        table = Table(title=f"{found.model}: {len(found.rows):,} rows", title_justify="left")
        table.add_column("metric")
        table.add_column("value", justify="right")
        if confidence is not None:
            table.add_column(f"{confidence:.0%} interval", justify="right")
        table.add_column("better")
        for number in found.numbers:
            between = [interval_of(number)] if confidence is not None else []
            table.add_row(number.name, shown(number.value), *between, "higher" if number.greater_is_better else "lower")
        parts.append(table)
    return rendered(parts, found.remarks)


def benchmark_table(found: Evaluated) -> str:
    """Accuracy by subject, by category and of all questions."""
    from rich.table import Table

    confidence = found.settings.get("confidence")
    title = f"{found.model}: {found.settings['benchmark']}, {found.settings['split']}, {found.settings['shots']} shots"
    table = Table(title=title, title_justify="left")
    for column in ("subject", "category", "questions", "accuracy"):
        table.add_column(column, justify="left" if column in ("subject", "category") else "right")
    if confidence is not None:
        table.add_column(f"{confidence:.0%} interval", justify="right")

    def add(subject: str, category: str, rows: int, value: float, low: float | None, high: float | None) -> None:
        between = "" if low is None or high is None else f"[{low:.4f}, {high:.4f}]"
        table.add_row(subject, category, f"{rows:,}", shown(value), *([between] if confidence is not None else []))

    for part in found.sources:
        add(part["source"], part["category"], part["rows"], part["accuracy"], part["low"], part["high"])
    table.add_section()
    for part in found.settings["categories"]:
        add("", part["category"], part["rows"], part["accuracy"], part["low"], part["high"])
    (number,) = found.numbers
    add("all", "", number.rows, number.value, number.low, number.high)
    return rendered([table], found.remarks)


def harness_table(found: HarnessResult) -> str:
    """The harness's numbers, under its names."""
    from rich.table import Table

    table = Table(title=f"{found.model}: lm-evaluation-harness", title_justify="left")
    for column in ("task", "metric", "value"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for task, values in found.results.items():
        for name, value in values.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool):
                table.add_row(task, name, shown(float(value)))
    return rendered([table], [])


def comparison_table(found: Comparison) -> str:
    """Every metric of every run, and what the paired tests say."""
    from rich.table import Table

    runs = Table(title=f"Runs on the same {found.rows:,} rows", title_justify="left")
    runs.add_column("metric")
    for run in found.runs:
        runs.add_column(run.label, justify="right", overflow="fold")
    for metric in found.metrics:
        runs.add_row(metric.name, *(f"{shown(n.value)} {interval_of(n)}" for n in metric.numbers))
    parts: list[Any] = [runs]
    for place, run in list(enumerate(found.runs))[1:]:
        table = Table(title=f"{run.label} against {found.runs[0].label}", title_justify="left")
        for column in (
            "metric",
            "difference",
            f"{found.confidence:.0%} interval",
            "p",
            "test",
            "better",
            "worse",
            "same",
        ):
            table.add_column(column, justify="left" if column in ("metric", "test") else "right")
        for metric in found.metrics:
            pair = metric.pairs[place - 1]
            between = "" if pair.low is None or pair.high is None else f"{pair.low:+.4f} to {pair.high:+.4f}"
            rows = ["" if n is None else f"{n:,}" for n in (metric.better(pair), metric.worse(pair), pair.equal)]
            table.add_row(metric.name, f"{pair.difference:+.4f}", between, p_shown(pair.p_value), pair.test, *rows)
        parts.append(table)
    return rendered(parts, found.remarks)


def shown(value: float | None) -> str:
    """A metric with four digits after the point."""
    return "" if value is None else f"{value:.4f}"


def interval_of(number: Number) -> str:
    """Its interval, empty where there is none."""
    return "" if number.low is None or number.high is None else f"[{number.low:.4f}, {number.high:.4f}]"


def p_shown(p_value: float) -> str:
    """A probability that is never shown as none at all."""
    return "<0.0001" if p_value < 0.0001 else f"{p_value:.4f}"


def rendered(parts: Sequence[RenderableType], remarks: Sequence[str]) -> str:
    """Tables, then remarks, as text."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))
    for part in parts:
        console.print(part)
    for remark in remarks:
        console.print(f"- {remark}", markup=False, highlight=False, soft_wrap=True)
    text: str = console.file.getvalue().rstrip()  # type: ignore[attr-defined]
    return text
