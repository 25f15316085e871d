"""Macro-F1: the mean of the classes' F1, so that a rare class counts as much as a common one."""

from __future__ import annotations

from luthier.metrics._counts import counts_by_class, f1
from luthier.metrics._metric import Array, Metric, MetricOptions, Task

TASKS: frozenset[Task] = frozenset({"single_label", "multi_label"})
GREATER_IS_BETTER = True


class Options(MetricOptions):
    """Macro-F1 has no settings."""

    name: str = "macro_f1"


def macro_f1(truth: Array, predicted: Array) -> float:
    """Mean F1 over the classes, 0 to 1."""
    return float(f1(*counts_by_class(truth, predicted)).mean())


def build(options: Options) -> Metric:
    """The metric."""
    return macro_f1
