"""The wrong queries of an evaluation as one HTML page, each beside its gold query, with both results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from luthier.foundation.pages import filled_page
from luthier.sandbox.sandbox import Cell, Outcome
from luthier.text2sql.evaluation.evaluating import Item

SHOWN_CHARACTERS = 200
SHOWN_QUERY_CHARACTERS = 4_000
SHOWN_COLUMNS = 20
# beyond, JavaScript's numbers are not exact
EXACT_INTEGER = 2**53


def queries_page(
    summary: Mapping[str, Any], items: Sequence[Item], *, gold: Path, predicted: Path, notes: Sequence[str]
) -> str:
    """The page's HTML. What queries and databases hold is data to its script and never part of its markup."""
    title = f"{predicted.name} beside {gold.name}"
    wrong = [item for item in items if not (item.verdict.execution and item.verdict.exact in (None, 1))]
    about = [f"{len(items):,} queries", f"{len(wrong):,} with something wrong", f"benchmark {summary['benchmark']}"]
    if "ves" in summary:
        about.append(f"VES {summary['ves']:.2f}")
    payload = {
        "title": title,
        "about": about,
        "levels": summary["levels"],
        "notes": list(notes),
        "items": [_item(item) for item in wrong],
    }
    return filled_page("luthier.text2sql.pages", "queries.html", title, payload)


def _item(item: Item) -> dict[str, Any]:
    return {
        **item.as_dict(),
        "question": item.gold.question,
        "gold": _shortened(item.gold.query, SHOWN_QUERY_CHARACTERS),
        "predicted": _shortened(item.prediction.query, SHOWN_QUERY_CHARACTERS),
        "gold_result": _result(item.verdict.gold_result),
        "result": _result(item.verdict.result),
    }


def _result(outcome: Outcome | None) -> dict[str, Any] | None:
    if outcome is None:
        return None
    return {
        "columns": [_shortened(name, SHOWN_CHARACTERS) for name in outcome.columns[:SHOWN_COLUMNS]],
        "rows": [[_cell(cell) for cell in row[:SHOWN_COLUMNS]] for row in outcome.rows],
        "cut": outcome.cut,
        "error": outcome.error,
    }


def _cell(value: Cell) -> int | float | str | None:
    if isinstance(value, bytes):
        return f"X'{_shortened(value[:SHOWN_CHARACTERS].hex(), SHOWN_CHARACTERS)}'"
    if isinstance(value, float):
        return value if value - value == 0 else str(value)
    if isinstance(value, int):
        return value if abs(value) < EXACT_INTEGER else str(value)
    return value if value is None else _shortened(value, SHOWN_CHARACTERS)


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[:most]} … ({len(text):,} characters)"
