"""A forest's attention taken apart: what each call of the kernel computes.

Every run of rows that attend sees itself, causally, and its segment's tokens before it; and every segment is seen whole by
the rows of its subtree. Long runs are halved: both halves with themselves, and the second with the first.

Shapes: T row length, U rows that attend, H query heads, K key-value heads, D head width; B blocks of one part, L rows of
one block.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from luthier.data.batch import Segment

# Rows from which on a run is halved. The kernel also computes what the causal flag masks, which halves leave out in part; but
# below 192 rows it takes 32 at a time instead of 64, a sixth slower.
HALVED_FROM = 384
# The same where threads would get unequally much: two equal halves go through one call.
HALVED_FOR_THREADS_FROM = 128

# Rows that make up for a run of their own among those that attend (two calls of the kernel each way); where they lie more
# scattered, a mask says what each sees.
WORTH_A_RUN = 8


@dataclass(frozen=True, slots=True)
class Part:
    """Blocks of queries, each against a block of keys, by one call of the kernel.

    Args:
        start, rows: where the first block of queries begins, and how long each is.
        key_start, keys: the same of the keys.
        causal: each block is a stretch with itself.
        blocks: how many there are. step, key_step: from the beginning of one block to that of the next; key_step 0: all
            see the same keys.
    """

    start: int
    rows: int
    key_start: int
    keys: int
    causal: bool = False
    blocks: int = 1
    step: int = 0
    key_step: int = 0

    def of_queries(self, whole: Tensor) -> Tensor:
        """Its queries of a tensor [1, H, U, ...]: [B, H, L, ...], no copy."""
        return _blocks(whole, self.start, self.rows, self.blocks, self.step)

    def of_keys(self, whole: Tensor) -> Tensor:
        """Its keys of a tensor [1, K, T, ...]: [B, K, L, ...], no copy."""
        return _blocks(whole, self.key_start, self.keys, self.blocks, self.key_step)

    def add_to_keys(self, whole: Tensor, own: Tensor) -> None:
        """Add its share of a gradient, [B, K, L, D], to that of all keys, [1, K, T, D]."""
        if self.key_step:
            self.of_keys(whole).add_(own)
        else:
            for block in own:
                _blocks(whole, self.key_start, self.keys, 1, 0).add_(block)


def _blocks(whole: Tensor, start: int, length: int, blocks: int, step: int) -> Tensor:
    if blocks == 1:
        return whole[:, :, start : start + length]
    _, heads, row, *rest = whole.stride()
    shape = (blocks, whole.shape[1], length, *whole.shape[3:])
    return whole.as_strided(shape, (step * row, heads, row, *rest), whole.storage_offset() + start * row)


@dataclass(frozen=True, slots=True)
class Parts:
    """All parts of a row.

    Args:
        parts: the causal ones first, of which no two have a row in common; the others add to them.
        bare_rows, bare_keys: int64, the queries and the keys that no causal part has.
    """

    parts: tuple[Part, ...]
    bare_rows: Tensor
    bare_keys: Tensor


@dataclass(frozen=True)
class Decomposition:
    """The ways in which a row is taken apart, each made when it is first asked for.

    Args:
        runs: of each segment, the ranges of its rows that attend.
        last_below: of each segment, the last one of its subtree.
    """

    segments: tuple[Segment, ...]
    runs: Sequence[Sequence[range]]
    last_below: Sequence[int]

    @classmethod
    def of(cls, segments: tuple[Segment, ...], rows: Sequence[int] | None = None) -> Decomposition | None:
        """None where the segments do not stand depth first, or too scattered rows attend.

        Args:
            rows: those that attend, ascending; None: all.
        """
        last_below = list(range(len(segments)))
        path: list[int] = []  # the segment before, and its ancestors
        for index, segment in enumerate(segments):
            while path and path[-1] != segment.parent:
                path.pop()
            if segment.parent is not None and not path:
                return None
            for ancestor in path:
                last_below[ancestor] = index
            path.append(index)
        whole = [[range(segment.start, segment.end)] for segment in segments]
        runs = whole if rows is None else [_runs(segment, rows) for segment in segments]
        if sum(map(len, runs)) > len(segments) + sum(len(run) for own in runs for run in own) / WORTH_A_RUN:
            return None
        return cls(segments, runs, last_below)

    @cached_property
    def fewest(self) -> Parts:
        """Halved only where that saves arithmetic."""
        return self._parts(_Builder(HALVED_FROM))

    @cached_property
    def dealt(self) -> Parts:
        """In two equal blocks at a time: runs, once, and rectangles of an even number of rows."""
        return self._parts(_Builder(HALVED_FOR_THREADS_FROM, in_two=True))

    def backward(self, key_heads: int) -> Parts:
        """In backward the kernel deals whole key-value heads of each block to the threads (in forward, rows too): in two blocks
        where each thread then gets less."""
        threads = torch.get_num_threads()
        return self.dealt if -(-2 * key_heads // threads) < 2 * -(-key_heads // threads) else self.fewest

    def _parts(self, builder: _Builder) -> Parts:
        places = list(accumulate((sum(map(len, own)) for own in self.runs), initial=0))
        for index, (segment, own) in enumerate(zip(self.segments, self.runs, strict=True)):
            place, before = places[index], segment.start
            for run in own:
                builder.bare_keys += range(before, run.start)
                builder.with_itself(run.start, len(run), place - run.start)
                if run.start > segment.start:
                    builder.with_all(place, len(run), segment.start, run.start - segment.start)
                place, before = place + len(run), run.stop
            builder.bare_keys += range(before, segment.end)
        for index, segment in enumerate(self.segments):
            place, end = places[index + 1], places[self.last_below[index] + 1]
            if end > place:
                builder.with_all(place, end - place, segment.start, segment.end - segment.start)
        return builder.built()


@dataclass
class _Builder:
    """Collects the parts of a row.

    Args:
        halved_from: rows from which on a run is halved; each half again from `HALVED_FROM` on.
        in_two: rectangles of an even number of rows are computed in two blocks.
    """

    halved_from: int
    in_two: bool = False
    bare_rows: list[int] = field(default_factory=list)
    bare_keys: list[int] = field(default_factory=list)
    _causal: list[Part] = field(default_factory=list)
    _others: list[Part] = field(default_factory=list)

    def with_itself(self, start: int, length: int, shift: int, blocks: int = 1, step: int = 0) -> None:
        """Equally long runs, each with itself.

        Where the length is odd, the row in the middle is in neither half: it sees the first half and itself, and the second
        half sees both, which is one rectangle more.

        Args:
            shift: from a row's place in the whole row to its place among those that attend.
            step: from the beginning of one run to that of the next.
        """
        if length < max(2, self.halved_from if blocks == 1 else HALVED_FROM):
            self._causal.append(Part(start + shift, length, start, length, True, blocks, step, step))
            return
        half, rest = length // 2, length - length // 2
        if rest > half:
            middles = [start + half + block * step for block in range(blocks)]
            self.bare_keys += middles
            self.bare_rows += [middle + shift for middle in middles]
        if blocks == 1:
            self.with_itself(start, half, shift, 2, rest)
            self.with_all(start + half + shift, rest, start, rest)
        else:
            self.with_itself(start, half, shift, blocks, step)
            self.with_itself(start + rest, half, shift, blocks, step)
            self._others.append(Part(start + half + shift, rest, start, rest, False, blocks, step, step))

    def with_all(self, start: int, rows: int, key_start: int, keys: int) -> None:
        """A run of rows, each with all of a run of keys."""
        if self.in_two and rows % 2 == 0 and rows >= HALVED_FOR_THREADS_FROM // 2:
            self._others.append(Part(start, rows // 2, key_start, keys, blocks=2, step=rows // 2))
        else:
            self._others.append(Part(start, rows, key_start, keys))

    def built(self) -> Parts:
        """Everything collected so far."""
        bare_rows, bare_keys = (torch.tensor(bare, dtype=torch.int64) for bare in (self.bare_rows, self.bare_keys))
        return Parts((*self._causal, *self._others), bare_rows, bare_keys)


def _runs(segment: Segment, rows: Sequence[int]) -> list[range]:
    """Those of some ascending rows that are a segment's own."""
    runs: list[range] = []
    for row in rows[bisect_left(rows, segment.start) : bisect_left(rows, segment.end)]:
        if runs and runs[-1].stop == row:
            runs[-1] = range(runs[-1].start, row + 1)
        else:
            runs.append(range(row, row + 1))
    return runs
