"""The share of answers that make the reference's tool calls: the same functions with equal arguments.

Calls are found as JSON objects with a function's name and its arguments, wherever they stand in a text: between
<tool_call> tags, in a list, in the chat API's layout, or bare. A row whose reference makes none is right where the answer makes
none either.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import Field

from luthier.metrics._json import INVALID, strict_json, values_in
from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("tool_call_match",)
INSIDE = ("function", "function_call")  # where the chat API has name and arguments, now and before tools


class Options(MetricOptions):
    """What must agree."""

    name: str = "tool_call_match"
    compare: Literal["arguments", "names"] = Field("arguments", description="names: the arguments do not count.")
    ordered: bool = Field(False, description="Several calls must come in the reference's order.")


def calls_in(text: str) -> list[tuple[str, Any]]:
    """Function names and arguments of the calls of a text."""
    return [call for value in values_in(text) for call in _calls(value)]


def _calls(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        for item in value:
            yield from _calls(item)
    elif isinstance(value, dict):
        if isinstance(value.get("tool_calls"), list):
            yield from _calls(value["tool_calls"])
            return
        function = next((value[key] for key in INSIDE if isinstance(value.get(key), dict)), value)
        name = function.get("name")
        key = next((key for key in ("arguments", "parameters") if key in function), None)
        if isinstance(name, str) and key is not None:
            arguments = function[key]
            if isinstance(arguments, str):  # the chat API writes them as JSON in text
                parsed = strict_json(arguments)
                arguments = arguments if parsed is INVALID else parsed
            yield name, arguments


def build(options: Options) -> TextMetric:
    """The metric."""

    def written(text: str) -> list[str]:
        if options.compare == "names":
            return [name for name, _ in calls_in(text)]
        return [json.dumps(call, sort_keys=True) for call in calls_in(text)]

    def right(answer: TextRow) -> bool:
        found, wanted = written(answer.prediction), written(answer.reference)
        return found == wanted if options.ordered else Counter(found) == Counter(wanted)

    def tool_call_match(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        return {"tool_call_match": Scored.mean([right(answer) for answer in answers])}

    return tool_call_match
