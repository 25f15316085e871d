"""A forest's attention as tiles: some rows of one segment, for one key-value head, with all the keys that they see.

Shapes: T row length, U rows that attend, N tiles.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from luthier.data.batch import Segment

# Rows of queries that a product takes at once, all heads of a group together: with fewer the products are slower, with more
# the causal mask hides more of what is computed. Of 32, 48 and 64 rows of three heads, 32 was the fastest or near it.
STACKED = 96
FEWEST, MOST = 16, 64
# What a tile costs beside its scores, in keys: its queries are brought together, its results written.
BESIDE = 20

Numbers = tuple[int, ...]


def numbers_of(segments: Sequence[Segment], rows: Sequence[int] | None = None) -> Numbers:
    """A forest as a flat list, which an operation of torch can take: how many segments there are, start, end and parent (or
    -1) of each, then start and length of each run of rows that attend; none: all do."""
    found = [len(segments)]
    for segment in segments:
        found += segment.start, segment.end, -1 if segment.parent is None else segment.parent
    runs: list[list[int]] = []
    for row in rows or ():
        if runs and sum(runs[-1]) == row:
            runs[-1][1] += 1
        else:
            runs.append([row, 1])
    for run in runs:
        found += run
    return tuple(found)


@dataclass(frozen=True)
class Tiles:
    """What each thread computes, as kernels read it.

    Args:
        tiles: [N, 7] of key-value head, first row and count of rows among those that attend, first and last + 1 of `ranges`,
            the first key of those that only some of its rows see, and the slot that its gradients of keys and values are
            added up in: each head has one for each share that has tiles of it.
        ranges: [., 2] of first and last + 1 of keys that all rows of a tile see.
        shares: the first tile of each share and the end of the last one.
        position_U: the rows that attend.
        head_of_slot: ascending. stacked: the most rows of a tile.
    """

    tiles: np.ndarray[Any, np.dtype[np.int64]]
    ranges: np.ndarray[Any, np.dtype[np.int64]]
    shares: np.ndarray[Any, np.dtype[np.int64]]
    position_U: np.ndarray[Any, np.dtype[np.int64]]
    head_of_slot: tuple[int, ...]
    stacked: int


@functools.lru_cache(maxsize=256)
def tiles_of(numbers: Numbers, key_heads: int, groups: int, threads: int) -> Tiles:
    """The tiles of a forest, in shares of about equal work: always the same ones, so that sums have the same bits.

    Args:
        numbers: see `numbers_of`. groups: query heads of each key-value head. threads: how many shares there are.
    """
    count = numbers[0]
    segments = list(zip(*(numbers[1 + part : 1 + 3 * count : 3] for part in range(3)), strict=True))
    runs = numbers[1 + 3 * count :]
    positions = [
        row for start, length in zip(runs[::2], runs[1::2], strict=True) for row in range(start, start + length)
    ]
    if not runs:
        positions = list(range(segments[-1][1]))
    stacked = min(MOST, max(FEWEST, STACKED // groups))
    ranges: list[tuple[int, int]] = []
    found: list[tuple[int, tuple[int, ...]]] = []  # of one head: cost and tile
    chains: list[list[tuple[int, int]]] = []
    for start, end, parent in segments:
        above = [] if parent < 0 else [*chains[parent], segments[parent][:2]]
        chains.append(above)
        first, last = bisect_left(positions, start), bisect_left(positions, end)
        pieces = -(-(last - first) // stacked)
        for low, high in pairwise(first + (last - first) * piece // max(pieces, 1) for piece in range(pieces + 1)):
            begin = len(ranges)
            ranges += _joined([*above, (start, positions[low])])
            seen = sum(stop - key for key, stop in ranges[begin:]) + positions[high - 1] + 1 - positions[low]
            found.append(((high - low) * (seen + BESIDE), (low, high - low, begin, len(ranges), positions[low])))
    tiles, counts, slots = _shared_out(found, key_heads, threads)
    return Tiles(
        np.array(tiles, np.int64).reshape(-1, 7),
        np.array([*ranges, (0, 0)], np.int64),  # one more, so that there is an address where there are none
        np.cumsum([0, *counts]).astype(np.int64),
        np.array(positions, np.int64),
        slots,
        stacked,
    )


def _joined(ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges without empty ones, those in one that follow each other at once."""
    found: list[tuple[int, int]] = []
    for start, end in ranges:
        if found and found[-1][1] == start:
            found[-1] = found[-1][0], end
        elif end > start:
            found.append((start, end))
    return found


def _shared_out(
    found: list[tuple[int, tuple[int, ...]]], key_heads: int, threads: int
) -> tuple[list[tuple[int, ...]], list[int], tuple[int, ...]]:
    """All heads' tiles in their order cut into shares of equal cost, so that most heads are one share's; how many tiles each
    share has, and the heads of the slots."""
    whole = key_heads * sum(cost for cost, _ in found)
    tiles: list[tuple[int, ...]] = []
    counts, slots = [0] * threads, []
    done, of_slot = 0, None
    for head in range(key_heads):
        for cost, tile in found:
            share = min(threads - 1, (2 * done + cost) * threads // (2 * whole))  # that of the tile's middle
            done += cost
            if of_slot != (share, head):
                of_slot = share, head
                slots.append(head)
            tiles.append((head, *tile, len(slots) - 1))
            counts[share] += 1
    return tiles, counts, tuple(slots)
