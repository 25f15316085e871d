"""Several sources mixed into one order: by turns, or drawn by weight, until the first or the last of them ends.

The two stopping rules are those of `datasets.interleave_datasets` (first_exhausted, all_exhausted).
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import cycle

from luthier.foundation.errors import DataError
from luthier.foundation.seeding import derive_seed

LARGEST_GROWTH = 100


def interleave(
    counts: Sequence[int], weights: Sequence[float | None], seed: int, *, oversample: bool
) -> list[tuple[int, int]]:
    """(source, row) for every row of the mix, the rows of a source in their order.

    Args:
        counts: rows of each source.
        weights: what a source's chance is in proportion to, None counting as 1. Where all are None the sources take
            turns, else each row's source is drawn by the seed.
        oversample: go on until every source has been read to its end, starting those anew that end earlier;
            otherwise stop as soon as one is at its end, leaving out the rest of the others.

    Raises:
        DataError: a source without rows, or weights that would repeat rows over 100 times.
    """
    for source, count in enumerate(counts):
        if not count:
            raise DataError(
                f"data.train.{source} has no row left to mix.", "Remove it, or take fewer rows for validation and test."
            )
    shares = [1.0 if weight is None else weight for weight in weights]
    if oversample:
        expected = max(count * sum(shares) / share for count, share in zip(counts, shares, strict=True))
        if expected > LARGEST_GROWTH * sum(counts):
            raise DataError(
                f"data.mix is interleave_over, and data.train's weights {[f'{share:g}' for share in shares]} would make "
                f"about {expected:,.0f} rows of {sum(counts):,}.",
                "Raise the smallest weight, or use interleave_under.",
            )
    mixed: list[tuple[int, int]] = []
    used = [0] * len(counts)
    ended: set[int] = set()
    for source in drawn_sources(weights, seed):
        mixed.append((source, used[source] % counts[source]))
        used[source] += 1
        if used[source] >= counts[source]:
            ended.add(source)
            if not oversample or len(ended) == len(counts):
                break
    return mixed


def drawn_sources(weights: Sequence[float | None], seed: int) -> Iterator[int]:
    """Which source gives each row of the mix, without end: by turns where no weight is given, else drawn by the seed."""
    if all(weight is None for weight in weights):
        yield from cycle(range(len(weights)))
    shares = [1.0 if weight is None else weight for weight in weights]
    generator = random.Random(derive_seed(seed, "mix"))  # noqa: S311 - an order, not a secret
    places = range(len(shares))
    while True:
        yield from generator.choices(places, shares, k=1024)
