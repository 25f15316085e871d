"""From examples to the batches of each step: of a set in memory, or of a stream."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from torch.utils.data import DataLoader, Dataset

from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample
from luthier.data.records import Origin
from luthier.data.streamed import News, Place, Streamed
from luthier.training.grouping import Packing, pack_step
from luthier.training.schedule import IndexedSchedule, Schedule, StreamSchedule


@dataclass(frozen=True, slots=True)
class Step:
    """What one optimizer step computes.

    Args:
        batches: this rank's, packed.
        rows: tells where their examples come from.
        last: whether nothing of the epoch is left.
        after: where a stream goes on, JSON; empty for a set in memory, whose index says it.
        news: what became of rows that were read for it.
    """

    batches: Sequence[Batch]
    rows: Callable[[], Sequence[Origin]]
    last: bool
    after: Mapping[str, int] = field(default_factory=dict)
    news: Sequence[News] = ()


class Stream(Protocol):
    """Examples one after the other; see `luthier.data.training_stream`."""

    def examples(self, epoch: int, place: Place) -> Iterator[Streamed]:
        """The examples of an epoch from a place on."""
        ...


class Feed(Protocol):
    """Gives the steps of an epoch from any of them on."""

    def steps(self, epoch: int, index: int, place: Mapping[str, int]) -> Iterator[Step]:
        """Steps `index`, `index` + 1, ... of an epoch.

        Args:
            place: `Step.after` of the step before.
        """
        ...


class IndexedFeed:
    """Of a set in memory, packed here or ahead of time by worker processes."""

    def __init__(
        self, examples: Sequence[TokenizedExample], schedule: IndexedSchedule, packing: Packing, workers: int
    ) -> None:
        self._batches = StepBatches(examples, schedule, packing)
        self._workers = workers

    def steps(self, epoch: int, index: int, place: Mapping[str, int]) -> Iterator[Step]:
        """The steps from `index` to the epoch's last."""
        schedule, examples = self._batches.schedule, self._batches.examples
        places = [(epoch, step) for step in range(index, schedule.steps_per_epoch)]
        for (_, step), batches in zip(places, _packed(self._batches, places, self._workers), strict=True):
            rows = partial(_origins, examples, schedule, (epoch, step))
            yield Step(batches, rows, last=step + 1 == schedule.steps_per_epoch)


def _origins(examples: Sequence[TokenizedExample], schedule: IndexedSchedule, place: tuple[int, int]) -> list[Origin]:
    return [examples[row].origin for batch in schedule.indices(*place) for row in batch]


class StepBatches(Dataset[list[Batch]]):
    """The packed batches of each step, by (epoch, index in the epoch): a torch map-style dataset."""

    def __init__(self, examples: Sequence[TokenizedExample], schedule: IndexedSchedule, packing: Packing) -> None:
        self.examples = examples
        self.schedule = schedule
        self.packing = packing

    def __getitem__(self, place: tuple[int, int]) -> list[Batch]:
        drawn = [[self.examples[index] for index in batch] for batch in self.schedule.indices(*place)]
        return pack_step(drawn, self.packing)


class StreamFeed:
    """Of a stream, read while it is trained on: every rank reads all of it, and takes its batches of each step."""

    def __init__(self, stream: Stream, schedule: StreamSchedule, packing: Packing) -> None:
        self._stream = stream
        self._schedule = schedule
        self._packing = packing

    def steps(self, epoch: int, index: int, place: Mapping[str, int]) -> Iterator[Step]:
        """The steps from where the last one ended to the stream's end.

        Raises:
            DataError: the stream is at its end before its first example, or a row of it can't be used.
        """
        build = partial(_step, schedule=self._schedule, packing=self._packing)
        waiting: list[TokenizedExample] = []
        news: list[News] = []  # of the windows that `waiting` is of
        untold: list[News] = []  # of windows none of whose examples is taken: a resumed run would hear of them again
        after: Place | None = None
        for found in self._stream.examples(epoch, Place(**place)):
            if found.news is not None:
                untold.append(found.news)
            if found.example is None:
                continue
            # a step is given once the example after it is there, so that the last one is known to be the last
            if len(waiting) == self._schedule.examples_per_step:
                yield build(waiting, last=False, after=after, news=news)
                waiting, news = [], []
            waiting.append(found.example)
            news, untold = [*news, *untold], []
            after = found.after
        if waiting:
            yield build(waiting, last=True, after=after, news=[*news, *untold])


def _step(
    examples: Sequence[TokenizedExample],
    *,
    schedule: StreamSchedule,
    packing: Packing,
    last: bool,
    after: Place | None,
    news: Sequence[News],
) -> Step:
    size = schedule.batch_size
    drawn = [examples[start : start + size] for start in range(0, len(examples), size)]
    batches = drawn[schedule.rank :: schedule.world_size]
    rows = [example.origin for batch in batches for example in batch]
    place = after.as_dict() if after is not None else {}
    return Step(pack_step(batches, packing), lambda: rows, last, place, tuple(news))


def make_feed(
    examples: Sequence[TokenizedExample], stream: Stream | None, schedule: Schedule, packing: Packing, workers: int
) -> Feed:
    """The feed that fits a schedule."""
    if isinstance(schedule, IndexedSchedule):
        return IndexedFeed(examples, schedule, packing, workers)
    assert stream is not None and isinstance(schedule, StreamSchedule)
    return StreamFeed(stream, schedule, packing)


def _packed(batches: StepBatches, places: Sequence[tuple[int, int]], workers: int) -> Iterator[list[Batch]]:
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
    )
    with _held_back(signal.SIGINT, signal.SIGTERM):
        started = iter(loader)
    yield from started


@contextmanager
def _held_back(*signals: signal.Signals) -> Iterator[None]:
    """Block signals; processes started meanwhile never see them, from their first moment on.

    A stop that reaches the whole process group is the training process's to handle: it ends its workers. torch's workers
    end at SIGTERM from before their `worker_init_fn` is called, so that ignoring it there would be too late.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _as_it_is(step: Any) -> Any:
    return step
