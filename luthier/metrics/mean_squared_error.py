"""Mean squared error of predicted numbers."""

from __future__ import annotations

from luthier.metrics._metric import Array, Metric, MetricOptions, Task

TASKS: frozenset[Task] = frozenset({"regression"})
GREATER_IS_BETTER = False


class Options(MetricOptions):
    """The mean squared error has no settings."""

    name: str = "mean_squared_error"


def mean_squared_error(truth: Array, predicted: Array) -> float:
    """mean((p - t)^2)."""
    return float(((predicted - truth) ** 2).mean())


def build(options: Options) -> Metric:
    """The metric."""
    return mean_squared_error
