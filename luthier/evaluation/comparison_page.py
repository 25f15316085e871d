"""A comparison as one HTML page: every metric with its intervals, the paired tests, and the rows that changed."""

from __future__ import annotations

from luthier.evaluation.comparison import Comparison
from luthier.foundation.pages import filled_page

LONGEST_TEXT = 20_000  # of an answer; a model that never stopped must not make the page unreadable


def comparison_page(found: Comparison) -> str:
    """The page's HTML. Texts of rows are data to its script and never part of its markup."""
    values = found.as_dict()
    for row in values["changed"]:
        row["predictions"] = [_shortened(text) for text in row["predictions"]]
        row["reference"] = _shortened(row["reference"])
    title = " and ".join([run.label for run in found.runs][:3])
    return filled_page("luthier.evaluation.pages", "comparison.html", f"Comparison of {title}", values)


def _shortened(value: object) -> str:
    text = value if isinstance(value, str) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= LONGEST_TEXT else f"{text[:LONGEST_TEXT]} ... ({len(text):,} characters)"
