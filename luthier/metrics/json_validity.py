"""The share of answers that are JSON (RFC 8259: no NaN, no trailing commas), with the fields that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field

from luthier.metrics._json import INVALID, strict_json, without_fence
from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("json_validity",)


class Options(MetricOptions):
    """What counts as valid."""

    name: str = "json_validity"
    kind: Literal["any", "object", "array"] = Field("any", description="What the whole answer must be.")
    required: list[str] = Field(default_factory=list, description="Keys that an object must have.")
    fenced: bool = Field(True, description="A code fence around all of the answer (```json ... ```) is no fault.")


def build(options: Options) -> TextMetric:
    """The metric."""

    def valid(text: str) -> bool:
        value = strict_json(without_fence(text) if options.fenced else text)
        if value is INVALID:
            return False
        if options.kind == "array":
            return isinstance(value, list)
        if options.kind == "object" or options.required:
            return isinstance(value, dict) and value.keys() >= set(options.required)
        return True

    def json_validity(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        return {"json_validity": Scored.mean([valid(answer.prediction) for answer in answers])}

    return json_validity
