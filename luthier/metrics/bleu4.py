"""BLEU-4 of each answer's characters, 0 to 100, and the mean over answers: the `bleu-4` of LLaMA-Factory's evaluation.
White space at the ends does not count.

It is NLTK's `sentence_bleu` over single characters with `SmoothingFunction().method3`; far above a corpus BLEU over words.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from luthier.metrics._metric import MetricOptions, Task
from luthier.metrics._ngrams import ngrams
from luthier.metrics._text import Scored, TextMetric, TextRow, without_margins

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("bleu-4",)


class Options(MetricOptions):
    """BLEU-4 has no settings."""

    name: str = "bleu4"


def sentence_bleu(prediction: str, reference: str) -> float:
    """0 to 1: the brevity penalty times the geometric mean of the precisions of 1- to 4-grams of characters; the k-th order
    without a match counts 1 / (2^k n)."""
    if not set(prediction) & set(reference):
        return 0.0
    missed, logarithms = 0, 0.0
    for order in range(1, 5):
        predicted = ngrams(prediction, order)
        matches = (predicted & ngrams(reference, order)).total()
        missed += matches == 0
        logarithms += math.log((matches or 0.5**missed) / max(1, predicted.total()))
    brevity = 1.0 if len(prediction) > len(reference) else math.exp(1 - len(reference) / len(prediction))
    return brevity * math.exp(logarithms / 4)


def bleu4(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
    """The mean."""
    return {"bleu-4": Scored.mean([sentence_bleu(*without_margins(one)) for one in answers], scale=100)}


def build(options: Options) -> TextMetric:
    """The metric."""
    return bleu4
