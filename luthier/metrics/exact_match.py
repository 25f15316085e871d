"""Exact match: the share of answers that are the reference, letter for letter or after what the options level."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence

from pydantic import Field

from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("exact_match",)


class Options(MetricOptions):
    """What does not count as a difference."""

    name: str = "exact_match"
    strip: bool = Field(True, description="Whitespace at both ends does not count.")
    ignore_case: bool = Field(False, description="Upper and lower case are the same.")
    ignore_punctuation: bool = Field(False, description="ASCII and Chinese punctuation is taken out.")
    ignore_articles: bool = Field(False, description="The words a, an and the are taken out, as SQuAD's script does.")
    collapse_whitespace: bool = Field(False, description="Any run of whitespace is one space.")


PUNCTUATION = re.compile(f"[{re.escape(string.punctuation)}，。！？；：、（）《》「」『』【】“”‘’…—]")
ARTICLES = re.compile(r"\b(a|an|the)\b", re.IGNORECASE)


def levelled(text: str, options: Options) -> str:
    """A text without what does not count."""
    if options.ignore_case:
        text = text.casefold()
    if options.ignore_punctuation:
        text = PUNCTUATION.sub("", text)
    if options.ignore_articles:
        text = ARTICLES.sub(" ", text)
    if options.collapse_whitespace:
        text = re.sub(r"\s+", " ", text)
    return text.strip() if options.strip else text


def build(options: Options) -> TextMetric:
    """The metric."""

    def exact_match(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        equal = [levelled(answer.prediction, options) == levelled(answer.reference, options) for answer in answers]
        return {"exact_match": Scored.mean(equal)}

    return exact_match
