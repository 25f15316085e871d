"""Pearson correlation of predicted numbers with the true ones."""

from __future__ import annotations

import numpy as np

from luthier.metrics._metric import Array, Metric, MetricOptions, Task

TASKS: frozenset[Task] = frozenset({"regression"})
GREATER_IS_BETTER = True


class Options(MetricOptions):
    """The Pearson correlation has no settings."""

    name: str = "pearson"


def pearson(truth: Array, predicted: Array) -> float:
    """cov(t, p) / sqrt(var(t) var(p)), -1 to 1; 0 where one of them is constant, and it is not defined."""
    true, found = truth - truth.mean(), predicted - predicted.mean()
    spread = float(np.sqrt((true**2).sum()) * np.sqrt((found**2).sum()))
    return float((true * found).sum()) / spread if spread > 0 else 0.0


def build(options: Options) -> Metric:
    """The metric."""
    return pearson
