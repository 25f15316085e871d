"""ROUGE-1, ROUGE-2 and ROUGE-L, 0 to 100: the F1 of each answer's n-grams, or of the longest common subsequence, and their
mean over answers (Lin 2004, https://aclanthology.org/W04-1013).

Two counts are in use, and differ. `jieba`: words as jieba cuts them, an n-gram that occurs twice counting once, as rouge-chinese
and so LLaMA-Factory have it. `english`: lower-case letters and digits, every occurrence counting, as rouge-score has it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from typing import Literal

from pydantic import Field

from luthier.metrics import _jieba
from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._ngrams import longest_common_subsequence, ngrams
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("rouge-1", "rouge-2", "rouge-l")

# where rouge-chinese ends a sentence: after a full stop that no closing quotation mark follows
SENTENCES = (
    (re.compile("([。！？?])([^”’])"), r"\1\n\2"),
    (re.compile(r"(\.{6})([^”’])"), r"\1\n\2"),
    (re.compile("(…{2})([^”’])"), r"\1\n\2"),
    (re.compile("([。！？?][”’])([^，。！？?])"), r"\1\n\2"),
)


class Options(MetricOptions):
    """Which words are compared, and how they are counted."""

    name: str = "rouge"
    tokenizer: Literal["jieba", "english"] = Field(
        "jieba", description="jieba: Chinese and other words, as LLaMA-Factory counts; english: as rouge-score counts."
    )


def jieba_words(text: str) -> list[str]:
    """The words that rouge-chinese sees in what jieba cut; a line of spaces counts as an empty word."""
    text = " ".join(_jieba.cut(text))
    if not text.split():
        return []
    for pattern, replacement in SENTENCES:
        text = pattern.sub(replacement, text)
    return [word for line in text.rstrip().split("\n") if line for word in " ".join(line.split()).split(" ")]


def english_words(text: str) -> list[str]:
    """Runs of lower-case ASCII letters and digits."""
    return re.findall("[a-z0-9]+", text.lower())


def f1(matches: int, predicted: int, reference: int) -> float:
    """2 m / (p + r), 0 where nothing is to be found or nothing was."""
    return 2 * matches / (predicted + reference) if matches else 0.0


def needs(options: Options) -> None:
    """Raise MissingExtraError where jieba is to cut, and is not installed."""
    if options.tokenizer == "jieba":
        _jieba.load()


def build(options: Options) -> TextMetric:
    """The metric."""
    words = jieba_words if options.tokenizer == "jieba" else english_words

    def counted(items: Sequence[Hashable], order: int) -> Counter[Hashable]:
        found = ngrams(items, order)
        return Counter(found.keys()) if options.tokenizer == "jieba" else found

    def scores(prediction: list[str], reference: list[str]) -> list[float]:
        if not prediction or not reference:
            return [0.0, 0.0, 0.0]
        of_orders = []
        for order in (1, 2):
            found, wanted = counted(prediction, order), counted(reference, order)
            of_orders.append(f1((found & wanted).total(), found.total(), wanted.total()))
        longest = longest_common_subsequence(prediction, reference)
        return [*of_orders, f1(longest, len(prediction), len(reference))]

    def rouge(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        rows = [scores(words(answer.prediction), words(answer.reference)) for answer in answers]
        return {
            name: Scored.mean(column, scale=100) for name, column in zip(GIVES, zip(*rows, strict=True), strict=True)
        }

    return rouge
