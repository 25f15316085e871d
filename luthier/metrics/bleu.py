"""BLEU of the corpus, 0 to 100, as sacrebleu computes and signs it (Post 2018, https://aclanthology.org/W18-6319)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from pydantic import Field

from luthier.foundation.errors import import_extra
from luthier.metrics._metric import Array, MetricOptions, Task
from luthier.metrics._text import Scored, TextMetric, TextRow

TASKS: frozenset[Task] = frozenset({"text"})
GREATER_IS_BETTER = True
GIVES = ("bleu",)
ORDERS = 4


class Options(MetricOptions):
    """sacrebleu's settings."""

    name: str = "bleu"
    tokenize: Literal["13a", "intl", "zh", "char", "none"] = Field(
        "13a", description="sacrebleu's tokenizer; zh for Chinese."
    )
    lowercase: bool = Field(False, description="Upper and lower case are the same.")


def pool(sums_S: Array) -> Array:
    """BLEU of summed counts: lengths of predictions and references, matches of 1- to 4-grams, and how many there are.

    Orders without a match count 1 / (2^k n), k = 1 for the first of them (sacrebleu's `exp` smoothing).
    """
    length, reference = sums_S[..., 0], sums_S[..., 1]
    matches, totals = sums_S[..., 2 : 2 + ORDERS], sums_S[..., 2 + ORDERS :]
    missed = (matches == 0) & (totals > 0)
    smoothed = np.where(missed, 0.5 ** np.cumsum(missed, axis=-1), matches)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(totals > 0, smoothed / totals, 0.0)
        mean = np.exp(np.log(precision).mean(axis=-1))
        brevity = np.where(length < reference, np.exp(1 - reference / length), 1.0)
    defined = (matches.sum(axis=-1) > 0) & (totals > 0).all(axis=-1)
    return np.asarray(np.where(defined, 100 * brevity * mean, 0.0))


def needs(options: Options) -> None:
    """Raise MissingExtraError where sacrebleu is not installed."""
    _sacrebleu()


def _sacrebleu() -> Any:
    return import_extra("sacrebleu", extra="evaluation", purpose="the metric bleu")


def build(options: Options) -> TextMetric:
    """The metric."""

    def bleu(answers: Sequence[TextRow]) -> Mapping[str, Scored]:
        # of one sentence, orders for which it is too short are left out
        metric = _sacrebleu().BLEU(tokenize=options.tokenize, lowercase=options.lowercase, effective_order=True)
        found = [metric.sentence_score(answer.prediction, [answer.reference]) for answer in answers]
        statistics = [[one.sys_len, one.ref_len, *one.counts, *one.totals] for one in found]
        rows_E = np.array([one.score for one in found])
        return {"bleu": Scored(np.array(statistics, dtype=np.float64), pool, rows_E)}

    return bleu
