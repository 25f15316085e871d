"""Which examples form which step: arithmetic on (seed, epoch, index), so a position is a number and resuming is exact.

A feed (feeds.py) turns a schedule's steps into batches.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from luthier.foundation.seeding import permutation


class Schedule(Protocol):
    """The steps of a run.

    `steps_per_epoch` is None where only the end of the data tells it; `total_epochs` is then without bound.
    """

    @property
    def examples_per_step(self) -> int:
        """Examples of a full step over all ranks; the last step of an epoch may have fewer."""
        ...

    @property
    def steps_per_epoch(self) -> int | None:
        """Optimizer steps of one pass."""
        ...

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        ...

    @property
    def total_epochs(self) -> int:
        """Passes that are begun, at most."""
        ...

    def epoch_share(self, index: int) -> float:
        """The share of an epoch that `index` steps have worked off: Trainer's fraction of an epoch."""
        ...

    def examples_in(self, steps: int) -> int:
        """Examples of so many steps."""
        ...


@dataclass(frozen=True, slots=True)
class IndexedSchedule:
    """The steps over examples whose number is known.

    Args:
        examples: number of training examples.
        batch_size: examples per batch and rank.
        accumulation: batches per step and rank.
        epochs: passes over the data, may be fractional.
        max_steps: overrides epochs where positive.
        seed: of the order. shuffle: whether the order changes at all.
        rank, world_size: which part of a step this process computes.
        order: an epoch's order in place of the shuffled one.
        deal: a step's batches from its examples, the batch size and the number of ranks, where several ranks are not to take
            them as they come; a rank's are each world_size-th, its own first.
    """

    examples: int
    batch_size: int
    accumulation: int
    epochs: float
    max_steps: int
    seed: int
    shuffle: bool
    rank: int = 0
    world_size: int = 1
    order: Callable[[int], Sequence[int]] | None = None
    deal: Callable[[Sequence[int], int, int], list[list[int]]] | None = None

    @property
    def examples_per_step(self) -> int:
        """Examples of a full step over all ranks; the last step of an epoch may have fewer."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass."""
        return math.ceil(self.examples / self.examples_per_step)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run."""
        return self.max_steps if self.max_steps > 0 else math.ceil(self.epochs * self.steps_per_epoch)

    @property
    def total_epochs(self) -> int:
        """Passes that are begun."""
        return math.ceil(self.total_steps / self.steps_per_epoch)

    def epoch_share(self, index: int) -> float:
        """The share of an epoch's batches that `index` steps have worked off: Trainer's fraction of an epoch."""
        batches = math.ceil(self.examples / (self.batch_size * self.world_size))
        return min(index * self.accumulation, batches) / batches

    def examples_in(self, steps: int) -> int:
        """Examples of so many steps, those of the epochs' shorter last steps counted as full."""
        return min(steps * self.examples_per_step, self.examples * self.total_epochs)

    def shuffled(self, epoch: int) -> Sequence[int]:
        """An epoch's order as it is drawn."""
        return epoch_order(self.examples, self.seed, epoch) if self.shuffle else range(self.examples)

    def indices(self, epoch: int, index: int) -> list[list[int]]:
        """Example indices of each of this rank's batches in step `index` of an epoch, both from 0."""
        order = self.order(epoch) if self.order else self.shuffled(epoch)
        chosen = order[index * self.examples_per_step : (index + 1) * self.examples_per_step]
        if self.deal is not None and self.world_size > 1:
            batches = self.deal(chosen, self.batch_size, self.world_size)
        else:
            batches = in_batches(chosen, self.batch_size)
        return batches[self.rank :: self.world_size]


def in_batches(examples: Sequence[int], size: int) -> list[list[int]]:
    """So many examples after the others; the last batch may have fewer."""
    return [list(examples[start : start + size]) for start in range(0, len(examples), size)]


@functools.lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The shuffled order of an epoch."""
    return permutation(count, seed, "order", epoch)


@dataclass(frozen=True, slots=True)
class StreamSchedule:
    """The steps over a stream, which ends where it ends. As for Trainer, an epoch's share is one of the whole run.

    Args:
        batch_size, accumulation, rank, world_size: see `IndexedSchedule`.
        total_steps: of the run, training.max_steps.
    """

    batch_size: int
    accumulation: int
    total_steps: int
    rank: int = 0
    world_size: int = 1

    @property
    def examples_per_step(self) -> int:
        """Examples of a full step over all ranks."""
        return self.batch_size * self.accumulation * self.world_size

    @property
    def steps_per_epoch(self) -> None:
        """Nobody knows before the stream's end."""
        return None

    @property
    def total_epochs(self) -> int:
        """Without bound: the steps end the run."""
        return sys.maxsize

    def epoch_share(self, index: int) -> float:
        """Steps done as a share of the run's."""
        return index / self.total_steps

    def examples_in(self, steps: int) -> int:
        """Examples of so many full steps."""
        return steps * self.examples_per_step
