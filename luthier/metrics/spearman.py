"""Spearman correlation: the Pearson correlation of the ranks, so only the order of the predictions counts."""

from __future__ import annotations

import numpy as np

from luthier.metrics._metric import Array, Metric, MetricOptions, Task
from luthier.metrics.pearson import pearson

TASKS: frozenset[Task] = frozenset({"regression"})
GREATER_IS_BETTER = True


class Options(MetricOptions):
    """The Spearman correlation has no settings."""

    name: str = "spearman"


def spearman(truth: Array, predicted: Array) -> float:
    """Pearson correlation of the ranks, equal numbers having their mean rank; 0 where one of the two is constant."""
    return pearson(_ranks(truth), _ranks(predicted))


def _ranks(values: Array) -> Array:
    _, group, sizes = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(sizes)
    return (ends - (sizes - 1) / 2)[group]  # the mean of ranks end - size + 1 to end


def build(options: Options) -> Metric:
    """The metric."""
    return spearman
