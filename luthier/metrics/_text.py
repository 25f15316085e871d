"""What metrics of written answers share: the rows, and what a metric makes of them.

Every such metric is a function of sums over the rows: of each row's score and 1 for a mean, of counts of n-grams for BLEU, of
true and false positives for F1. So its value on any selection of rows, which intervals and paired tests ask for thousands of
times, is one sum and one small formula.

Shapes: E rows, S statistics of a row.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from luthier.metrics._metric import Array


@dataclass(frozen=True, slots=True)
class TextRow:
    """One row: what was written, what is right, and what was asked."""

    prediction: str
    reference: str
    prompt: str = ""


def without_margins(row: TextRow) -> tuple[str, str]:
    """Prediction and reference without white space at their ends: many a template puts a blank before or behind an answer, which
    a model learns to write, and no reference has."""
    return row.prediction.strip(), row.reference.strip()


def numbered(rows: Iterable[TextRow]) -> Iterator[tuple[str, str]]:
    """Each row's place among them, for messages, and its reference."""
    return ((f"row {number}", row.reference) for number, row in enumerate(rows, start=1))


@dataclass(frozen=True)
class Scored:
    """One number of a metric.

    Args:
        statistics_ES: each row's, float64.
        pool: from sums over rows [..., S] to the metric [...].
        rows_E: each row's own score, float64; None where one row has none.
        is_mean: whether the metric is the mean of rows_E.
        remark: what a reader of the number should know of it.
    """

    statistics_ES: Array
    pool: Callable[[Array], Array]
    rows_E: Array | None
    is_mean: bool = False
    remark: str = ""

    @classmethod
    def mean_of_known(cls, rows: Sequence[float | None], remark: str = "") -> Scored:
        """The mean of the rows that have a score; NaN in rows_E of those that have none."""
        rows_E = np.array([math.nan if score is None else score for score in rows], dtype=np.float64)
        known_E = ~np.isnan(rows_E)
        statistics_ES = np.stack([np.where(known_E, rows_E, 0.0), known_E.astype(np.float64)], axis=1)
        return cls(statistics_ES, _ratio, rows_E, is_mean=True, remark=remark)

    @classmethod
    def mean(cls, rows: Sequence[float] | Array, scale: float = 1.0) -> Scored:
        """The mean of the rows' scores, both times `scale`."""
        rows_E = np.asarray(rows, dtype=np.float64) * scale
        return cls(np.stack([rows_E, np.ones_like(rows_E)], axis=1), _ratio, rows_E, is_mean=True)

    @property
    def value(self) -> float:
        """The metric of all rows."""
        return float(self.pool(self.statistics_ES.sum(axis=0)))


def _ratio(sums_S: Array) -> Array:
    with np.errstate(invalid="ignore"):  # of rows that have no score the mean is NaN
        return np.asarray(sums_S[..., 0] / sums_S[..., 1])


TextMetric = Callable[[Sequence[TextRow]], Mapping[str, Scored]]
"""From at least one answer to the metric's numbers by name (most give one)."""
