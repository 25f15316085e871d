"""What stages on labelled texts share: outcomes, the metrics chosen for them, and predictions in words.

An outcome is a row of numbers: what was predicted, then what is true. Of one label: the probability of each class, and the
true class's number. Of several: the probability of each class, and 0 or 1 for each. Of a number: it, and the true one.

Shapes: E examples, K classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from luthier.config.plugins import METRICS
from luthier.foundation.errors import DataError

if TYPE_CHECKING:
    from luthier.data.preparing import PreparedData
    from luthier.metrics._metric import Array, Task

DEFAULTS: Mapping[Task, tuple[str, ...]] = {
    "single_label": ("accuracy", "macro_f1", "matthews"),
    "multi_label": ("accuracy", "micro_f1", "macro_f1"),
    "regression": ("mean_squared_error", "pearson", "spearman"),
}
ENOUGH = 0.5  # the probability from which on one of several labels counts as predicted


def check_metrics(chosen: Sequence[str] | None, task: Task) -> None:
    """Raise ValueError for a metric that does not fit the task, UserError for one that does not exist."""
    unfit = [name for name in chosen or () if task not in METRICS.load(name).TASKS]
    if unfit:
        fit = [name for name in METRICS.names() if task in METRICS.load(name).TASKS]
        raise ValueError(
            f"metrics: {', '.join(unfit)} can't measure {task.replace('_', ' ')} predictions; these can: {', '.join(fit)}"
        )


class Labelling:
    """What a stage on labelled texts does with outcomes.

    Args:
        chosen: names of metrics; None: the task's usual ones.
    """

    def __init__(self, task: Task, chosen: Sequence[str] | None) -> None:
        self.task = task
        self.metrics = DEFAULTS[task] if chosen is None else tuple(chosen)
        self.functions = {name: _load(name) for name in self.metrics}
        self.labels: tuple[str, ...] = ()

    def meet(self, data: PreparedData) -> Array:
        """Take the classes' names from the data; returns how many training rows each has, float [K] (a number: none).

        Raises:
            DataError: the rows are all of one class, or have all one number.
        """
        self.labels = data.report.labels
        if self.task == "multi_label":
            counts = np.array([data.train.numbers(f"label.{number}").sum() for number in range(len(self.labels))])
            if not len(counts) or not ((counts > 0) & (counts < len(data.train))).any():
                raise DataError(
                    f"all {len(data.train):,} training rows have the same labels, so there is nothing to tell apart.",
                    "Add rows with other labels.",
                )
            return counts
        values = data.train.numbers("label")
        if (values == values[0]).all():
            shown = f"of the class {self.labels[int(values[0])]!r}" if self.labels else f"labelled {values[0]:g}"
            raise DataError(
                f"all {len(values):,} training rows are {shown}, so there is nothing to tell apart.",
                "Add rows with other labels, or see whether data.train.columns names the right column as label.",
            )
        return np.bincount(values.astype(int), minlength=len(self.labels)) if self.labels else np.zeros(0)

    def measure(self, outcomes_EC: Array) -> dict[str, float]:
        """The metrics of outcomes."""
        truth, predicted = self.truth_and_predictions(outcomes_EC)
        return {name: function(truth, predicted) for name, function in self.functions.items()}

    def truth_and_predictions(self, outcomes_EC: Array) -> tuple[Array, Array]:
        """What is true and what was predicted, as the task's metrics take them."""
        if self.task == "regression":
            predicted, truth = outcomes_EC.T
        elif self.task == "multi_label":
            probability, truth = np.split(outcomes_EC, 2, axis=1)
            predicted, truth = (probability >= ENOUGH).astype(int), truth.astype(int)
        else:
            predicted, truth = outcomes_EC[:, :-1].argmax(axis=1), outcomes_EC[:, -1].astype(int)
        return truth, predicted

    def prediction(self, outcome_C: Array) -> dict[str, Any]:
        """An outcome in words."""
        if self.task == "regression":
            return {"label": float(outcome_C[1]), "predicted": float(outcome_C[0])}
        count = len(self.labels)
        probabilities = {name: round(float(p), 6) for name, p in zip(self.labels, outcome_C, strict=False)}
        if self.task == "multi_label":
            true = [name for name, value in zip(self.labels, outcome_C[count:], strict=True) if value]
            predicted = [name for name, value in zip(self.labels, outcome_C, strict=False) if value >= ENOUGH]
            return {"label": true, "predicted": predicted, "probabilities": probabilities}
        return {
            "label": self.labels[int(outcome_C[-1])],
            "predicted": self.labels[int(outcome_C[:count].argmax())],
            "probabilities": probabilities,
        }


def _load(name: str) -> Any:
    module = METRICS.load(name)
    return module.build(module.Options(name=name))
