"""chrF of the corpus, 0 to 100: F-beta of runs of characters, of 1 to 6 of them (Popović 2015,
https://aclanthology.org/W15-3049), computed as sacrebleu does; with word_order 2 it is chrF++."""

from __future__ import annotations

import string
from collections.abc import Mapping, Sequence

import numpy as np
from pydantic import Field

from luthier.metrics._metric import Array, MetricOptions, Task
from luthier.metrics._ngrams import ngrams
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("chrf",)


class Options(MetricOptions):
    """sacrebleu's settings."""

    name: str = "chrf"
    char_order: int = Field(6, ge=1, description="Longest run of characters; whitespace is left out.")
    word_order: int = Field(0, ge=0, description="Longest run of words that counts too; 2: chrF++.")
    beta: float = Field(2.0, gt=0, description="How many times as much recall counts as precision.")
    lowercase: bool = Field(False, description="Upper and lower case are the same.")


def words_of(text: str) -> list[str]:
    """Words, one punctuation mark at an end being a word of its own."""
    found: list[str] = []
    for word in text.split():
        if len(word) > 1 and word[-1] in string.punctuation:
            found += [word[:-1], word[-1]]
        elif len(word) > 1 and word[0] in string.punctuation:
            found += [word[0], word[1:]]
        else:
            found.append(word)
    return found


def statistics(answer: TextRow, options: Options) -> list[int]:
    """For each order: n-grams of the prediction (0 where the reference has none), of the reference, and in both."""
    texts = [answer.prediction, answer.reference]
    if options.lowercase:
        texts = [text.lower() for text in texts]
    predicted, reference = ("".join(text.split()) for text in texts)
    predicted_words, reference_words = map(words_of, texts)
    pairs = [(ngrams(predicted, n), ngrams(reference, n)) for n in range(1, options.char_order + 1)]
    pairs += [(ngrams(predicted_words, n), ngrams(reference_words, n)) for n in range(1, options.word_order + 1)]
    return [
        count
        for found, wanted in pairs
        for count in (found.total() if wanted else 0, wanted.total(), (found & wanted).total())
    ]


def pooled(sums_S: Array, beta: float) -> Array:
    """F-beta of the precisions' and recalls' means over the orders that both sides have."""
    found, wanted, matches = np.moveaxis(sums_S.reshape(*sums_S.shape[:-1], -1, 3), -1, 0)
    counts = (found > 0) & (wanted > 0)
    orders = np.maximum(counts.sum(axis=-1), 1)
    precision = (counts * matches / np.maximum(found, 1)).sum(axis=-1) / orders
    recall = (counts * matches / np.maximum(wanted, 1)).sum(axis=-1) / orders
    below = beta**2 * precision + recall
    return np.asarray(100 * (1 + beta**2) * precision * recall / np.where(below > 0, below, 1.0))


def build(options: Options) -> TextMetric:
    """The metric."""

    def pool(sums_S: Array) -> Array:
        return pooled(sums_S, options.beta)

    def chrf(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        statistics_ES = np.array([statistics(answer, options) for answer in answers], dtype=np.float64)
        return {"chrf": Scored(statistics_ES, pool, pool(statistics_ES))}

    return chrf
