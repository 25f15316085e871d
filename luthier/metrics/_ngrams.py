"""Counts of n-grams, and the longest common subsequence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence


def ngrams(items: Sequence[Hashable], order: int) -> Counter[Hashable]:
    """How often each run of `order` items occurs."""
    return Counter(tuple(items[start : start + order]) for start in range(len(items) - order + 1))


def longest_common_subsequence(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Its length, a row of the table as the bits of one integer (Hyyrö 2004, "Bit-parallel LCS-length computation
    revisited"): 0 in bit i where the length grows at item i of `first`."""
    places: dict[Hashable, int] = {}
    for number, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << number
    whole = (1 << len(first)) - 1
    row = whole
    for item in second:
        hits = row & places.get(item, 0)
        row = ((row + hits) | (row - hits)) & whole
    return len(first) - row.bit_count()


def edit_distance(first: Sequence[Hashable], second: Sequence[Hashable]) -> int:
    """Insertions, deletions and replacements between the two (Levenshtein), a column of the table as the bits of two
    integers that say where it rises and falls (Hyyrö 2003, "A bit-vector algorithm for computing Levenshtein and
    Damerau edit distances")."""
    if not first:
        return len(second)
    places: dict[Hashable, int] = {}
    for number, item in enumerate(first):
        places[item] = places.get(item, 0) | 1 << number
    whole, last = (1 << len(first)) - 1, 1 << (len(first) - 1)
    rises, falls, distance = whole, 0, len(first)
    for item in second:
        equal = places.get(item, 0)
        diagonal = (((equal & rises) + rises) ^ rises) | equal | falls
        up, down = falls | (~(diagonal | rises) & whole), rises & diagonal
        distance += bool(up & last) - bool(down & last)
        up, down = (up << 1 | 1) & whole, (down << 1) & whole
        rises, falls = down | (~(diagonal | up) & whole), up & diagonal
    return distance
