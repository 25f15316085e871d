"""Classes as answers name them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from luthier.metrics._metric import Array, MetricOptions
from luthier.metrics._text import TextRow


class LabelOptions(MetricOptions):
    """How a class is read from an answer."""

    ignore_case: bool = Field(False, description="Upper and lower case are the same.")
    first_line: bool = Field(False, description="Only the answer's first line counts.")


def classes_of(answers: Sequence[TextRow], options: LabelOptions) -> tuple[list[str], Array, Array]:
    """The classes that the references name, sorted, and numbers of what is true and what was predicted, int64 [E];
    -1: an answer that names no class."""
    truth = [_named(answer.reference, options) for answer in answers]
    labels = sorted(set(truth))
    numbers = {label: number for number, label in enumerate(labels)}
    predicted = [numbers.get(_named(answer.prediction, options), -1) for answer in answers]
    return labels, np.array([numbers[label] for label in truth]), np.array(predicted)


def _named(text: str, options: LabelOptions) -> str:
    text = text.strip()
    if options.first_line:
        text = text.split("\n", 1)[0].strip()
    return text.casefold() if options.ignore_case else text
