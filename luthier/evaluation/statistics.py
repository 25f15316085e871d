"""How far a metric can be trusted: confidence intervals, and whether two runs differ on the same rows.

Everything is a function of the metric's value on selections of rows: an interval draws rows with replacement (Efron's
bootstrap), a test exchanges the two runs' answers row by row, which would change nothing if they were equally good.
scipy does the drawing.

Shapes: E rows, S statistics of a row, R selections, n rows of a selection.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from luthier.foundation.errors import import_extra
from luthier.metrics._metric import Array, Metric
from luthier.metrics._text import Scored

FLOATS_AT_ONCE = 2**22  # 32 MiB of statistics for one round of selections


class Sample(ABC):
    """A metric's rows.

    Args:
        rows_E: each row's own score; None where one row has none. is_mean: whether the metric is their mean.
    """

    rows_E: Array | None
    is_mean: bool
    width: int = 1

    @abstractmethod
    def __len__(self) -> int:
        """E."""

    @abstractmethod
    def at(self, selection_Rn: Array) -> Array:
        """The metric on each selection of row numbers, [R]."""

    @abstractmethod
    def beside(self, other: Any) -> Sample:
        """These rows, then another run's."""

    @property
    def value(self) -> float:
        """The metric of all rows."""
        return float(self.at(np.arange(len(self))[None])[0])


@dataclass(frozen=True)
class Statistics(Sample):
    """A metric that is a function of sums over rows."""

    scored: Scored

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows_E", self.scored.rows_E)
        object.__setattr__(self, "is_mean", self.scored.is_mean)
        object.__setattr__(self, "width", self.scored.statistics_ES.shape[1])

    def __len__(self) -> int:
        return len(self.scored.statistics_ES)

    def at(self, selection_Rn: Array) -> Array:
        """Sums, pooled."""
        return self.scored.pool(self.scored.statistics_ES[selection_Rn].sum(axis=-2))

    def beside(self, other: Statistics) -> Statistics:
        """Both runs' statistics; the formula is the same."""
        both = np.concatenate([self.scored.statistics_ES, other.scored.statistics_ES])
        return Statistics(Scored(both, self.scored.pool, None))


@dataclass(frozen=True)
class Labelled(Sample):
    """A metric of labels: of what is true and what was predicted, each [E] or [E, K]."""

    metric: Metric
    truth: Array
    predicted: Array
    rows_E: Array | None = None
    is_mean: bool = False

    def __len__(self) -> int:
        return len(self.truth)

    def at(self, selection_Rn: Array) -> Array:
        """The metric, selection by selection."""
        return np.array([self.metric(self.truth[rows], self.predicted[rows]) for rows in selection_Rn])

    def beside(self, other: Labelled) -> Labelled:
        """Both runs' predictions."""
        truth = np.concatenate([self.truth, other.truth])
        return Labelled(self.metric, truth, np.concatenate([self.predicted, other.predicted]))


@dataclass(frozen=True)
class Drawing:
    """How often and how rows are drawn.

    Args:
        confidence: of intervals. resamples: draws for an interval, and exchanges for a test.
    """

    confidence: float = 0.95
    resamples: int = 2000
    seed: int = 0

    def generator(self) -> np.random.Generator:
        """The same draws for every metric, so that they can be compared."""
        return np.random.default_rng(self.seed)

    def batch(self, sample: Sample, rows: int) -> int:
        """How many selections of so many rows fit into the memory that is taken at once."""
        return max(1, FLOATS_AT_ONCE // (rows * sample.width))


def scipy_stats() -> Any:
    """scipy.stats, or MissingExtraError."""
    return import_extra(
        "scipy.stats", package="scipy", extra="evaluation", purpose="a confidence interval or a paired test"
    )


def interval(sample: Sample, how: Drawing) -> tuple[float, float] | None:
    """The percentile bootstrap interval of a metric; None of fewer than two rows, which say nothing of others, and of a
    metric that is not finite."""
    if len(sample) < 2 or not np.isfinite(sample.value):
        return None
    return _bootstrap(sample, len(sample), how, sample.at)


def _bootstrap(sample: Sample, count: int, how: Drawing, at: Callable[[Array], Array]) -> tuple[float, float] | None:
    """None where it is not finite: of few rows all that are drawn may be without a score, or alike."""

    def statistic(rows: Array, axis: int) -> Array:
        return at(np.atleast_2d(np.moveaxis(rows, axis, -1)))

    stats = scipy_stats()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)  # of bounds that are NaN; None says it
        found = stats.bootstrap(
            (np.arange(count),),
            statistic,
            n_resamples=how.resamples,
            batch=how.batch(sample, count),
            confidence_level=how.confidence,
            method="percentile",
            vectorized=True,
            rng=how.generator(),
        )
    low, high = float(found.confidence_interval.low), float(found.confidence_interval.high)
    return (low, high) if np.isfinite([low, high]).all() else None


@dataclass(frozen=True)
class Paired:
    """What two runs on the same rows give.

    Args:
        difference: the second's value minus the first's; low, high: its interval, None where `interval` has none.
        p_value: how often a difference at least so large comes about where the runs are equally good, two-sided.
        test: mcnemar (exact, of rows that are right or wrong) or permutation (of the rows' answers).
        increased, decreased, equal: rows whose own score rose, fell or stayed; None where one row has none.
    """

    difference: float
    low: float | None
    high: float | None
    p_value: float
    test: Literal["mcnemar", "permutation"]
    increased: int | None = None
    decreased: int | None = None
    equal: int | None = None


def paired(first: Sample, second: Sample, how: Drawing) -> Paired:
    """Compare a metric of two runs on the same rows.

    Raises:
        ValueError: they have not equally many rows.
    """
    count = len(first)
    if len(second) != count:
        raise ValueError(f"{count} and {len(second)} rows can't be paired")
    both = first.beside(second)

    def difference(one: Array, other: Array) -> Array:
        return both.at(other) - both.at(one)

    drawn = _bootstrap(both, count, how, lambda rows: difference(rows, rows + count)) if count > 1 else None
    low, high = drawn or (None, None)
    changes = _changes(first, second)
    rows_of = [sample.rows_E for sample in (first, second) if sample.rows_E is not None and sample.is_mean]
    if len(rows_of) == 2 and all(np.isin(rows_E, (0.0, 1.0)).all() for rows_E in rows_of):
        p_value, test = mcnemar(changes["increased"], changes["decreased"]), "mcnemar"
    else:
        p_value, test = _permutation(both, count, how, difference), "permutation"
    return Paired(second.value - first.value, low, high, p_value, test, **changes)  # type: ignore[arg-type]


def mcnemar(increased: int, decreased: int) -> float:
    """The exact test: of the rows that differ, as many got right as got wrong (McNemar 1947; binomial, two-sided)."""
    if increased + decreased == 0:
        return 1.0
    return float(scipy_stats().binomtest(increased, increased + decreased, 0.5).pvalue)


def _permutation(both: Sample, count: int, how: Drawing, difference: Callable[[Array, Array], Array]) -> float:
    """Exchange the runs' answers on each row at random (all ways where those are few)."""
    if count == 1:
        return 1.0  # of two ways to exchange, both differ alike

    def statistic(one: Array, other: Array, axis: int) -> Array:
        pair = [np.moveaxis(rows, axis, -1) for rows in (one, other)]
        flat = [rows.reshape(-1, count) for rows in pair]
        return difference(*flat).reshape(pair[0].shape[:-1])

    rows = np.arange(count)
    found = scipy_stats().permutation_test(
        (rows, rows + count),
        statistic,
        permutation_type="samples",
        vectorized=True,
        n_resamples=how.resamples,
        batch=how.batch(both, count),
        rng=how.generator(),
    )
    return float(found.pvalue)


def _changes(first: Sample, second: Sample) -> dict[str, Any]:
    if first.rows_E is None or second.rows_E is None:
        return {}
    change_E = second.rows_E - first.rows_E
    return {
        "increased": int((change_E > 0).sum()),
        "decreased": int((change_E < 0).sum()),
        "equal": int((change_E == 0).sum()),
    }
