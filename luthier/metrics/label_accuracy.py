"""Accuracy of answers that name a class: the share that name the right one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.metrics._labels import LabelOptions, classes_of
from luthier.metrics._metric import Task
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("label_accuracy",)


class Options(LabelOptions):
    """How a class is read from an answer."""

    name: str = "label_accuracy"


def build(options: Options) -> TextMetric:
    """The metric."""

    def label_accuracy(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        _, truth, predicted = classes_of(answers, options)
        return {"label_accuracy": Scored.mean(truth == predicted)}

    return label_accuracy
