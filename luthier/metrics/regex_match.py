"""The share of answers in which a regular expression finds what it finds in the reference."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from pydantic import Field, field_validator

from luthier.foundation.errors import DataError
from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow, numbered

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("regex_match",)
# a letter alone: East Asian scripts set no space beside it (答案是B), and \b finds none between two letters of any scripts
_OF_A_WORD = r"[^\W\u2e80-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff]"
CHOICE = f"(?<!{_OF_A_WORD})([A-H])(?!{_OF_A_WORD})"


class Options(MetricOptions):
    """What is looked for."""

    name: str = "regex_match"
    pattern: str = Field(
        CHOICE,
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


def found_in(text: str, options: Options) -> str | None:
    """What the expression finds; None where it finds nothing."""
    pattern = re.compile(options.pattern, re.IGNORECASE if options.ignore_case else 0)
    matches = list(pattern.finditer(text))
    if not matches:
        return None
    match = matches[0 if options.which == "first" else -1]
    return levelled(match[1] if pattern.groups else match[0], options)


def levelled(text: str | None, options: Options) -> str:
    """Without what does not count."""
    text = (text or "").strip()
    return text.casefold() if options.ignore_case else text


def check(options: Options, references: Iterable[tuple[str, str]]) -> None:
    """Raise DataError for a reference in which there is nothing to be found."""
    if options.reference == "whole":
        return
    for place, reference in references:
        if found_in(reference, options) is None:
            raise DataError(
                f"{place} has no match of {options.pattern!r} in its reference {reference[-80:]!r}.",
                "Give another pattern, or reference: whole.",
            )


def build(options: Options) -> TextMetric:
    """The metric."""

    def right(answer: TextRow) -> bool:
        whole = options.reference == "whole"
        wanted = levelled(answer.reference, options) if whole else found_in(answer.reference, options)
        return found_in(answer.prediction, options) == wanted

    def regex_match(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        check(options, numbered(answers))
        return {"regex_match": Scored.mean([right(answer) for answer in answers])}

    return regex_match
