"""The share of answers whose number is the reference's: the last one in each, as answers to word problems end with it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from luthier.foundation.errors import DataError
from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow, numbered

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("numeric_match",)

# 1,234.5 or 1234.5 or .5, with an exponent, a sign where no digit or letter stands before it, and a per cent sign
NUMBER = re.compile(r"(?:(?<![\w.])[-+−])?(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d+)?%?")


class Options(MetricOptions):
    """Which number counts, and how near is equal."""

    name: str = "numeric_match"
    which: Literal["last", "first"] = Field("last", description="Which number of a text counts.")
    relative_tolerance: float = Field(1e-6, ge=0, description="Equal within this share of the larger one.")
    absolute_tolerance: float = Field(0.0, ge=0, description="Equal within this distance too.")


def numbers_in(text: str) -> list[float]:
    """The numbers of a text; commas part thousands, a per cent sign divides by 100."""
    found = []
    for written in NUMBER.findall(text):
        plain = written.replace(",", "").replace("−", "-")
        found.append(float(plain[:-1]) / 100 if plain.endswith("%") else float(plain))
    return found


def check(options: Options, references: Iterable[tuple[str, str]]) -> None:
    """Raise DataError for a reference without a number."""
    for place, reference in references:
        if not numbers_in(reference):
            raise DataError(
                f"{place} has no number in its reference {reference[-80:]!r}.",
                "numeric_match is for rows whose answer is a number; exact_match compares text.",
            )


def build(options: Options) -> TextMetric:
    """The metric."""
    place = -1 if options.which == "last" else 0

    def right(answer: TextRow) -> bool:
        wanted, found = numbers_in(answer.reference), numbers_in(answer.prediction)
        tolerances = {"rel_tol": options.relative_tolerance, "abs_tol": options.absolute_tolerance}
        return bool(found) and math.isclose(found[place], wanted[place], **tolerances)

    def numeric_match(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        check(options, numbered(answers))
        return {"numeric_match": Scored.mean([right(answer) for answer in answers])}

    return numeric_match
