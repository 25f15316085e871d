"""BIRD's valid efficiency score: how much faster or slower right predictions run than their gold queries.

Li et al., "Can LLM Already Serve as A Database Interface?" (NeurIPS 2023), section 4.2: the mean over all items of
1(right) * sqrt(T(gold) / T(prediction)). A later revision of the benchmark rewards steps of that ratio (R-VES).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from luthier.sandbox.sandbox import Sandbox

# (ratio from which on, reward)
STEPS = ((2.0, 1.25), (1.0, 1.0), (0.5, 0.75), (0.25, 0.5), (0.0, 0.25))
CLOCK_SECONDS = 1e-7


def time_ratio(sandbox: Sandbox, database: Path, gold: str, predicted: str, runs: int) -> float:
    """How many times as long the gold query takes, of several runs of both in turn; outliers are left out."""
    ratios = []
    for _ in range(runs):
        mine, theirs = sandbox.run(database, predicted), sandbox.run(database, gold)
        if not (mine.ok and theirs.ok):
            return 0.0
        ratios.append(max(theirs.seconds, CLOCK_SECONDS) / max(mine.seconds, CLOCK_SECONDS))
    return statistics.fmean(without_outliers(ratios))


def without_outliers(values: Sequence[float]) -> list[float]:
    """Those within three standard deviations (of the population) of the mean, as BIRD's script keeps them; all, if none is."""
    mean, spread = statistics.fmean(values), statistics.pstdev(values)
    kept = [value for value in values if mean - 3 * spread < value < mean + 3 * spread]
    return kept or list(values)


def efficiency_score(ratios: Sequence[float]) -> float:
    """VES of all items, in percent; the ratio of a wrong one is 0."""
    return 100 * statistics.fmean(math.sqrt(ratio) for ratio in ratios)


def rewarded_score(ratios: Sequence[float]) -> float:
    """R-VES of all items, in percent."""
    return 100 * statistics.fmean(math.sqrt(reward(ratio)) if ratio > 0 else 0.0 for ratio in ratios)


def reward(ratio: float) -> float:
    """The reward for a right prediction whose gold query takes `ratio` times as long."""
    return next(gained for least, gained in STEPS if ratio >= least)
