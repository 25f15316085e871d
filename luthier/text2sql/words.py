"""Words of questions and names, and which texts are most like another."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

import numpy as np

# a Chinese or Japanese character is a word of its own: nothing stands between those
_IDEOGRAPH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_IDEOGRAPH}]|[^\W_{_IDEOGRAPH}]+")
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
SATURATION, LENGTH_SHARE = 1.2, 0.75  # BM25's k1 and b as its authors recommend them


def words(text: str) -> list[str]:
    """The words of a text in small letters; each ideograph is one."""
    return _WORD.findall(text.casefold())


def name_words(name: str) -> list[str]:
    """The words of an identifier: `budgetInBillions` and `Budget_in_billions` have three."""
    return words(_CAMEL.sub(" ", name))


def stem(word: str) -> str:
    """A word without the ending of English plurals, as far as names of tables need it."""
    if len(word) > 4 and word.endswith("ies"):
        return word[:-3] + "y"
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


class Likeness:
    """Which of many texts are most like another, by BM25 over words and pairs of words.

    Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", equation 3.15.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        counts = [Counter(_terms(text)) for text in texts]
        lengths = [sum(count.values()) for count in counts]
        mean = sum(lengths) / len(lengths) if lengths else 1.0
        found: dict[str, tuple[list[int], list[float]]] = {}
        for place, count in enumerate(counts):
            norm = SATURATION * (1 - LENGTH_SHARE + LENGTH_SHARE * lengths[place] / mean)
            for term, times in count.items():
                places, weights = found.setdefault(term, ([], []))
                places.append(place)
                weights.append(times * (SATURATION + 1) / (times + norm))
        self._size = len(texts)
        self._postings = {term: (np.array(places), np.array(weights)) for term, (places, weights) in found.items()}

    def nearest(self, text: str, count: int) -> list[int]:
        """Places of the texts most like this one, best first; at equal likeness the earlier first."""
        scores = np.zeros(self._size)
        for term in dict.fromkeys(_terms(text)):
            if term in self._postings:
                places, weights = self._postings[term]
                scores[places] += math.log(1 + (self._size - len(places) + 0.5) / (len(places) + 0.5)) * weights
        best = np.argsort(-scores, kind="stable")[:count]
        return [int(place) for place in best if scores[place] > 0]


def _terms(text: str) -> list[str]:
    found = [stem(word) for word in words(text)]
    return [*found, *(f"{one} {other}" for one, other in pairwise(found))]
