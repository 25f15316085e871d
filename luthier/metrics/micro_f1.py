"""Micro-F1: F1 of all decisions together. With one label for each example it equals the accuracy."""

from __future__ import annotations

from luthier.metrics._counts import counts_by_class, f1
from luthier.metrics._metric import Array, Metric, MetricOptions, Task

TASKS: frozenset[Task] = frozenset({"single_label", "multi_label"})
GREATER_IS_BETTER = True


class Options(MetricOptions):
    """Micro-F1 has no settings."""

    name: str = "micro_f1"


def micro_f1(truth: Array, predicted: Array) -> float:
    """F1 of the classes' summed counts, 0 to 1."""
    tp, fp, fn = counts_by_class(truth, predicted)
    return float(f1(tp.sum(), fp.sum(), fn.sum()))


def build(options: Options) -> Metric:
    """The metric."""
    return micro_f1
