"""In which language rows are, roughly, by the package py3langid (a naive Bayes model over byte n-grams).

A text is judged by its first 300 characters. One with fewer than 20 letters (8 where they are Chinese, Japanese or
Korean), or that the model gives less than half its probability, counts as undetermined. Code and formulas are often
taken for English. A row's languages are told for question and answers together.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from luthier.data.checking.findings import Hit
from luthier.data.checking.rows import RowTexts
from luthier.foundation.errors import UserError, import_extra
from luthier.foundation.registry import nearest

UNDETERMINED = "und"
JUDGED_CHARACTERS = 300
FEWEST_LETTERS = 20
FEWEST_IDEOGRAPHS = 8
LEAST_CONFIDENCE = 0.5
# written like standard Chinese, which short texts are then taken for
_LIKE_CHINESE = {"wuu", "yue"}
_IDEOGRAPH = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]")
_LETTER = re.compile(r"[^\W\d_]")


def count(
    rows: Sequence[RowTexts], wanted: Sequence[str], advance: Callable[[int], None] = lambda count: None
) -> tuple[dict[str, Counter[str]], list[Hit]]:
    """How many rows of each split are in which language (ISO 639 codes), and the hits of `other_language`.

    Args:
        wanted: the languages that rows may be in; empty for any.
        advance: told how many rows more are done.

    Raises:
        MissingExtraError: py3langid is not installed.
        UserError: a wanted language that the model does not know.
    """
    model = _model()
    for name in wanted:
        if name not in model.labels:
            close = nearest(name, model.labels)
            hint = f"Did you mean {' or '.join(close)}? " if close else ""
            raise UserError(
                f"--language {name!r} is no language that can be told.", f"{hint}Known: {', '.join(model.labels)}."
            )
    counts: dict[str, Counter[str]] = {}
    hits = []
    for number, row in enumerate(rows, 1):
        language = language_of(row.whole)
        counts.setdefault(row.split, Counter())[language] += 1
        if wanted and language not in (*wanted, UNDETERMINED):
            hits.append(Hit("other_language", row.split, row.origin, f"{language}: {row.whole}"))
        if number % 500 == 0 or number == len(rows):
            advance(number % 500 or 500)
    return counts, hits


def language_of(text: str) -> str:
    """A text's language as an ISO 639 code, or `und`."""
    start = text[:JUDGED_CHARACTERS]
    ideographs = len(_IDEOGRAPH.findall(start))
    letters = len(_LETTER.findall(start))
    if letters < FEWEST_LETTERS and ideographs < FEWEST_IDEOGRAPHS:
        return UNDETERMINED
    return str(_model().classify(start)[0])


@cache
def _model() -> Any:
    langid = import_extra("py3langid.langid", package="py3langid", extra="check", purpose="telling languages")
    model = langid.LanguageIdentifier.from_model_file(
        langid.MODEL_FILE, norm_probs=True, min_confidence=LEAST_CONFIDENCE
    )
    model.set_languages([label for label in model.labels if label not in _LIKE_CHINESE])
    return model
