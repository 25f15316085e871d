"""How long rows are: percentiles and a histogram of token counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

PERCENTILES = (5, 25, 50, 75, 95, 99)
MOST_BARS = 14


@dataclass(frozen=True, slots=True)
class Bar:
    """Rows of `start` to `end` - 1 tokens; `end` is None for the last bar, which has no upper bound."""

    start: int
    end: int | None
    rows: int


@dataclass(frozen=True, slots=True)
class Lengths:
    """Token counts of a split's rows before anything is cut or left out.

    Args:
        percentiles: by the percent of rows that are at most so long (nearest rank).
    """

    rows: int
    shortest: int
    longest: int
    mean: float
    percentiles: dict[int, int]
    bars: tuple[Bar, ...]

    @classmethod
    def of(cls, counts: Sequence[int]) -> Lengths | None:
        """Of at least one row, else None."""
        if not counts:
            return None
        ordered = sorted(counts)
        ranks = {percent: ordered[max(0, -(-percent * len(ordered) // 100) - 1)] for percent in PERCENTILES}
        bars = _bars(ordered, ranks[99])
        return cls(len(ordered), ordered[0], ordered[-1], sum(ordered) / len(ordered), ranks, bars)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "shortest": self.shortest,
            "longest": self.longest,
            "mean": round(self.mean, 1),
            "percentiles": {str(percent): value for percent, value in self.percentiles.items()},
            "histogram": [{"from": bar.start, "below": bar.end, "rows": bar.rows} for bar in self.bars],
        }


def _bars(ordered: Sequence[int], high: int) -> tuple[Bar, ...]:
    """Bars of a round width that reach the 99th percentile; the last one holds what is longer."""
    width = next(
        step * 10**power
        for power in range(12)
        for step in (1, 2, 5)
        if step * 10**power * MOST_BARS > high - ordered[0]
    )
    start = ordered[0] // width * width
    number = high // width - start // width + 1
    rows = [0] * number
    for value in ordered:
        rows[min(value // width - start // width, number - 1)] += 1
    ends = [start + width * (place + 1) for place in range(number)]
    open_end = ordered[-1] >= ends[-1]
    return tuple(
        Bar(end - width, None if open_end and end == ends[-1] else end, count)
        for end, count in zip(ends, rows, strict=True)
    )
