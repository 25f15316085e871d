"""The share of answers in which a regular expression finds what it finds in the reference."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import Field, field_validator

from luthier.foundation.errors import DataError
from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("regex_match",)


class Options(MetricOptions):
    """What is looked for."""

    name: str = "regex_match"
    pattern: str = Field(
        r"\b([A-H])\b",
        description="What is compared: the first group, or all of the match where there is none. Default: a choice's letter.",
    )
    which: Literal["first", "last"] = Field("first", description="Which match counts, where there are several.")
    reference: Literal["search", "whole"] = Field(
        "whole",
        description="whole: the stripped reference is what must be found; search: what the pattern finds in it.",
    )
    ignore_case: bool = Field(False, description="Upper and lower case are the same.")

    @field_validator("pattern")
    @classmethod
    def _compiles(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from error
        return value


def build(options: Options) -> TextMetric:
    """The metric."""
    pattern = re.compile(options.pattern, re.IGNORECASE if options.ignore_case else 0)

    def found(text: str) -> str | None:
        matches = list(pattern.finditer(text))
        if not matches:
            return None
        match = matches[0 if options.which == "first" else -1]
        return levelled(match[1] if pattern.groups else match[0])

    def levelled(text: str | None) -> str:
        text = (text or "").strip()
        return text.casefold() if options.ignore_case else text

    def wanted(number: int, reference: str) -> str:
        if options.reference == "whole":
            return levelled(reference)
        match = found(reference)
        if match is None:
            raise DataError(
                f"row {number} has no match of {options.pattern!r} in its reference {reference[-80:]!r}.",
                "Give another pattern, or reference: whole.",
            )
        return match

    def regex_match(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        rows = [found(one.prediction) == wanted(number, one.reference) for number, one in enumerate(answers, start=1)]
        return {"regex_match": Scored.mean(rows)}

    return regex_match
