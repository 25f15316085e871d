"""Levenshtein distance of answers to their references, divided by the longer one's length: 0 equal, 1 nothing in common.
White space at the ends does not count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from luthier.metrics import _ngrams
from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow, without_margins

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = False
GIVES = ("edit_distance",)


class Options(MetricOptions):
    """What is inserted, deleted and replaced."""

    name: str = "edit_distance"
    unit: Literal["characters", "words"] = Field("characters", description="What counts as one edit.")
    normalised: bool = Field(True, description="Divide by the longer one's length; false: the number of edits.")


def build(options: Options) -> TextMetric:
    """The metric."""

    def distance(answer: TextRow) -> float:
        texts = without_margins(answer)
        first, second = (text.split() if options.unit == "words" else text for text in texts)
        edits = _ngrams.edit_distance(first, second)
        return edits / max(len(first), len(second), 1) if options.normalised else edits

    def edit_distance(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        return {"edit_distance": Scored.mean([distance(answer) for answer in answers])}

    return edit_distance
