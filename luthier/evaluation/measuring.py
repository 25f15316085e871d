"""From rows to numbers: what was written and what is right, through the metrics that were chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ValidationError

from luthier.config.loading import describe
from luthier.config.metric_choice import metric_options
from luthier.config.plugins import METRICS
from luthier.evaluation.statistics import Drawing, Labelled, Sample, Statistics, interval
from luthier.foundation.errors import ConfigError
from luthier.metrics._metric import Array, Task
from luthier.metrics._text import Scored, TextRow

LOSS = "loss"


@dataclass(frozen=True)
class Number:
    """One number, and how far it can be trusted.

    Args:
        name: what it is called.
        metric: the metric's options, its name among them; None: the model's loss.
        low, high: its confidence interval; None where there is none.
        by_source: its value on each source's rows, where there are several sources.
    """

    name: str
    metric: Mapping[str, Any] | None
    value: float
    low: float | None
    high: float | None
    rows: int
    greater_is_better: bool
    by_source: Mapping[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {name: dict(value) if isinstance(value, Mapping) else value for name, value in vars(self).items()}


@dataclass(frozen=True)
class Measured:
    """A metric's rows under one name, before anything is drawn from them, and what a reader of it should know."""

    name: str
    metric: Mapping[str, Any] | None
    greater_is_better: bool
    sample: Sample
    remark: str = ""

    def number(self, how: Drawing | None, source_of_row: Sequence[str] = ()) -> Number:
        """Its value with an interval.

        Args:
            how: None: without an interval.
            source_of_row: the source of each row.
        """
        low, high = (interval(self.sample, how) if how is not None else None) or (None, None)
        names = list(dict.fromkeys(source_of_row))
        each: dict[str, float] = {}
        if len(names) > 1:
            owner = np.array(source_of_row)
            each = {name: float(self.sample.at(np.flatnonzero(owner == name)[None])[0]) for name in names}
        rows = len(self.sample)
        return Number(self.name, self.metric, self.sample.value, low, high, rows, self.greater_is_better, each)


def chosen_metrics(values: Sequence[Any], task: Task = "text") -> list[BaseModel]:
    """Metrics from names, or mappings with their options.

    Raises:
        ConfigError: with every problem; two metrics that give a number of the same name.
    """
    found: list[BaseModel] = []
    problems: list[str] = []
    for value in values:
        name = value["name"] if isinstance(value, Mapping) and "name" in value else value
        try:
            found.append(metric_options(value, task))
        except ValidationError as error:
            problems += describe(error.errors(), METRICS.load(str(name)).Options, f"metric {name}")
        except ValueError as error:
            problems.append(str(error))
    names = [options.name for options in found]  # type: ignore[attr-defined]
    problems += [f"the metric {name} is chosen twice" for name in sorted(set(names)) if names.count(name) > 1]
    if problems:
        raise ConfigError(problems, "--metric")
    return found


def measure_texts(metrics: Sequence[BaseModel], rows: Sequence[TextRow], kept: Path | None = None) -> list[Measured]:
    """All numbers of the metrics of written answers.

    Args:
        kept: a file where a metric that costs much keeps what it has found, should the measuring be broken off.

    Raises:
        UserError: a package that a metric needs is missing, rows that one can't measure.
    """
    found = []
    for options in metrics:
        module = METRICS.load(options.name)  # type: ignore[attr-defined]
        metric = module.build(options, kept) if kept is not None and hasattr(module, "KEEPS") else module.build(options)
        for name, scored in metric(rows).items():
            sample = Statistics(scored)
            found.append(Measured(name, options.model_dump(), module.GREATER_IS_BETTER, sample, scored.remark))
    return found


def measure_labels(metrics: Sequence[BaseModel], truth: Array, predicted: Array) -> list[Measured]:
    """All numbers of the metrics of labels."""
    found = []
    for options in metrics:
        name: str = options.name  # type: ignore[attr-defined]
        module = METRICS.load(name)
        right = None
        if name == "accuracy":  # the one whose rows are right or wrong by themselves
            equal = truth == predicted
            right = (equal if equal.ndim == 1 else equal.all(axis=1)).astype(np.float64)
        sample = Labelled(module.build(options), truth, predicted, right, is_mean=right is not None)
        found.append(Measured(name, options.model_dump(), module.GREATER_IS_BETTER, sample))
    return found


def measure_losses(parts_E2: Array) -> Measured:
    """The mean loss of the rows' tokens, from each row's sums of loss and of weight."""
    with np.errstate(invalid="ignore", divide="ignore"):
        rows_E = parts_E2[:, 0] / parts_E2[:, 1]
    scored = Scored(parts_E2, lambda sums: np.asarray(sums[..., 0] / sums[..., 1]), rows_E)
    return Measured(LOSS, None, greater_is_better=False, sample=Statistics(scored))
