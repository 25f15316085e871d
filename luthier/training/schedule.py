"""Which examples form which step: arithmetic on (seed, epoch, index), so a position is a number and resuming is exact."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.utils.data import DataLoader, Dataset

from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample
from luthier.data.packing import pack
from luthier.foundation.seeding import permutation


@dataclass(frozen=True, slots=True)
class Schedule:
    """The steps of a run.

    Args:
        examples: number of training examples.
        batch_size: examples per batch and rank.
        accumulation: batches per step and rank.
        epochs: passes over the data, may be fractional.
        max_steps: overrides epochs where positive.
        seed: of the order. shuffle: whether the order changes at all.
        rank, world_size: which part of a step this process computes.
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

    def indices(self, epoch: int, index: int) -> list[list[int]]:
        """Example indices of each of this rank's batches in step `index` of an epoch, both from 0."""
        order = epoch_order(self.examples, self.seed, epoch) if self.shuffle else range(self.examples)
        chosen = order[index * self.examples_per_step : (index + 1) * self.examples_per_step]
        batches = [list(chosen[start : start + self.batch_size]) for start in range(0, len(chosen), self.batch_size)]
        return batches[self.rank :: self.world_size]


@functools.lru_cache(maxsize=2)
def epoch_order(count: int, seed: int, epoch: int) -> list[int]:
    """The shuffled order of an epoch."""
    return permutation(count, seed, "order", epoch)


class StepBatches(Dataset[list[Batch]]):
    """The packed batches of each step, by (epoch, index in the epoch): a torch map-style dataset."""

    def __init__(self, examples: Sequence[TokenizedExample], schedule: Schedule) -> None:
        self.examples = examples
        self.schedule = schedule

    def __getitem__(self, place: tuple[int, int]) -> list[Batch]:
        return [pack([self.examples[index] for index in batch]) for batch in self.schedule.indices(*place)]


def feed(batches: StepBatches, epoch: int, first: int, last: int, workers: int) -> Iterator[list[Batch]]:
    """The batches of an epoch's steps [first, last), packed here or ahead of time by worker processes."""
    places = [(epoch, index) for index in range(first, last)]
    if workers == 0:
        yield from (batches[place] for place in places)
        return
    # batch_size=None: an item is already a step; the identity collate keeps the dataclasses as they are
    loader: DataLoader[list[Batch]] = DataLoader(
        batches,
        batch_size=None,
        sampler=places,
        num_workers=workers,
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
    )
    yield from loader


def _ignore_signals(worker: int) -> None:
    """A stop that reaches the whole process group is the training process's to handle: it ends its workers."""
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _as_it_is(step: list[Batch]) -> list[Batch]:
    return step
