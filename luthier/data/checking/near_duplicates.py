"""Rows that are nearly the same, by MinHash (Broder 1997) with locality-sensitive hashing, from the package rensa.

Two texts are compared as sets of their character 5-grams (letters in one case, white space as one space), which needs
no word boundaries and so serves Chinese as well as English. Rows count as near duplicates from an estimated Jaccard
similarity of 0.8. With 256 permutations in 32 bands of 8, a pair of exactly this similarity is compared with a
probability of 1 - (1 - 0.8^8)^32 = 0.997, and the estimate has a standard error of sqrt(0.8 * 0.2 / 256) = 0.025.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from luthier.data.checking.duplicates import digest
from luthier.data.checking.findings import Hit, seen_from
from luthier.data.checking.rows import RowTexts
from luthier.foundation.errors import import_extra

SIMILARITY = 0.8
CHARACTERS = 5
PERMUTATIONS = 256
BANDS = 32
ROWS_AT_ONCE = 1000
# of a longer text only this much is compared: a book's first pages tell it from another
LONGEST_CHARACTERS = 50_000


def find(rows: Sequence[RowTexts], advance: Callable[[int], None] = lambda count: None) -> Iterator[Hit]:
    """`near_duplicates` and `near_leakage`; exact ones (see `duplicates`) are left out. Training rows come first.

    Args:
        advance: told how many rows more are done.

    Raises:
        MissingExtraError: rensa is not installed.
    """
    rensa = import_extra("rensa", extra="check", purpose="looking for near duplicates")
    by_split: dict[str, _Seen] = {}
    for start in range(0, len(rows), ROWS_AT_ONCE):
        chunk = rows[start : start + ROWS_AT_ONCE]
        sets = [shingles(row.whole) for row in chunk]
        hashes = rensa.RMinHash.from_token_sets(sets, num_perm=PERMUTATIONS, seed=0)
        for row, characters, minhash in zip(chunk, sets, hashes, strict=True):
            if characters:
                yield from _compare(row, minhash, by_split, rensa)
        advance(len(chunk))


def shingles(text: str) -> list[str]:
    """The different character 5-grams of a text; of a text shorter than that, none."""
    plain = " ".join(text[:LONGEST_CHARACTERS].casefold().split())
    return list({plain[place : place + CHARACTERS] for place in range(len(plain) - CHARACTERS + 1)})


class _Seen:
    """Rows of a split, each unlike all earlier ones."""

    def __init__(self, rensa: Any) -> None:
        self._index = rensa.RMinHashLSH(SIMILARITY, PERMUTATIONS, BANDS)
        self._rows: list[tuple[RowTexts, Any]] = []
        self._texts: set[bytes] = set()

    def holds(self, row: RowTexts) -> bool:
        """Whether a row of exactly this text was met, which then is remembered."""
        text = digest(row.whole)
        met = text in self._texts
        self._texts.add(text)
        return met

    def like(self, minhash: Any) -> tuple[RowTexts, float] | None:
        """The row most like this one, and its similarity, if that is enough."""
        similar = [(minhash.jaccard(self._rows[key][1]), -key) for key in self._index.query(minhash)]
        similarity, key = max(similar, default=(0.0, 0))
        return (self._rows[-key][0], similarity) if similarity >= SIMILARITY else None

    def add(self, row: RowTexts, minhash: Any) -> None:
        """Remember a row to compare later ones with."""
        self._index.insert(len(self._rows), minhash)
        self._rows.append((row, minhash))

    def has_text(self, row: RowTexts) -> bool:
        """Whether a row of exactly this text was met."""
        return digest(row.whole) in self._texts


def _compare(row: RowTexts, minhash: Any, by_split: dict[str, _Seen], rensa: Any) -> Iterator[Hit]:
    seen = by_split.setdefault(row.split, _Seen(rensa))
    if not seen.holds(row):
        # only rows unlike the earlier ones are kept, so a thousand alike cost a thousand comparisons, not a million
        if found := seen.like(minhash):
            yield _hit("near_duplicates", row, *found)
        else:
            seen.add(row, minhash)
    learnt = by_split.get("train")
    if row.split != "train" and learnt is not None and not learnt.has_text(row) and (found := learnt.like(minhash)):
        yield _hit("near_leakage", row, *found)


def _hit(finding: str, row: RowTexts, other: RowTexts, similarity: float) -> Hit:
    return Hit(
        finding, row.split, row.origin, f"{similarity:.0%} like {seen_from(other.origin, row.origin)}: {row.question}"
    )
