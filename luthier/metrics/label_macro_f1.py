"""Macro-F1 of answers that name a class: the mean F1 of the classes that are right somewhere.

An answer that names none of them is wrong for its class, and makes no class of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from luthier.metrics._counts import f1
from luthier.metrics._labels import LabelOptions, classes_of
from luthier.metrics._metric import Array, Task
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("label_macro_f1",)


class Options(LabelOptions):
    """How a class is read from an answer."""

    name: str = "label_macro_f1"


def pool(sums_S: Array) -> Array:
    """Mean F1, 0 to 1, over the classes that occur among the truths; from tp, fp and fn of the K classes [..., 3 K]."""
    tp, fp, fn = np.moveaxis(sums_S.reshape(*sums_S.shape[:-1], 3, -1), -2, 0)
    occurs = tp + fn > 0
    return np.asarray((f1(tp, fp, fn) * occurs).sum(axis=-1) / np.maximum(occurs.sum(axis=-1), 1))


def build(options: Options) -> TextMetric:
    """The metric."""

    def label_macro_f1(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        labels, truth, predicted = classes_of(answers, options)
        class_K = np.arange(len(labels))
        true_EK, predicted_EK = truth[:, None] == class_K, predicted[:, None] == class_K
        parts = (true_EK & predicted_EK, ~true_EK & predicted_EK, true_EK & ~predicted_EK)
        return {"label_macro_f1": Scored(np.concatenate(parts, axis=1).astype(np.float64), pool, None)}

    return label_macro_f1
