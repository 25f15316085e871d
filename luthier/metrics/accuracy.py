"""Accuracy: the share of examples that are right; of several labels, all of an example's must be."""

from __future__ import annotations

from luthier.metrics._metric import Array, Metric, MetricOptions, Task

TASKS: frozenset[Task] = frozenset({"single_label", "multi_label"})
GREATER_IS_BETTER = True


class Options(MetricOptions):
    """Accuracy has no settings."""

    name: str = "accuracy"


def accuracy(truth: Array, predicted: Array) -> float:
    """Share of equal rows, 0 to 1."""
    equal = truth == predicted
    return float((equal if equal.ndim == 1 else equal.all(axis=1)).mean())


def build(options: Options) -> Metric:
    """The metric."""
    return accuracy
