"""Matthews correlation of two classes, or of several (Gorodkin 2004, https://doi.org/10.1016/j.compbiolchem.2004.09.006)."""

from __future__ import annotations

import numpy as np

from luthier.metrics._metric import Array, Metric, MetricOptions, Task

TASKS: frozenset[Task] = frozenset({"single_label"})
GREATER_IS_BETTER = True


class Options(MetricOptions):
    """The Matthews correlation has no settings."""

    name: str = "matthews"


def matthews(truth: Array, predicted: Array) -> float:
    """cov(t, p) / sqrt(cov(t, t) cov(p, p)) of the indicator vectors of the classes, -1 to 1; 0 where one never changes."""
    classes = np.union1d(truth, predicted)
    true_EK, predicted_EK = ((part[:, None] == classes).astype(float) for part in (truth, predicted))

    def covariance(first: Array, second: Array) -> float:
        return float(((first - first.mean(axis=0)) * (second - second.mean(axis=0))).sum())

    spread = covariance(true_EK, true_EK) * covariance(predicted_EK, predicted_EK)
    return covariance(true_EK, predicted_EK) / float(np.sqrt(spread)) if spread > 0 else 0.0


def build(options: Options) -> Metric:
    """The metric."""
    return matthews
