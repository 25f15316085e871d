"""The batches of a run, as far as a plan needs them: the longest one decides the memory, a usual one the time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn

from luthier.config.schema import RunConfig
from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.scoring.readouts import HeadAt, as_readouts
from luthier.scoring.scorer import Scorer
from luthier.scoring.trunk import Trunk
from luthier.training.grouping import Packing, in_order, laid_down, pack_step, packing_of
from luthier.training.reference import name_of
from luthier.training.schedule import IndexedSchedule, Schedule
from luthier.training.stage import Stage

EPOCHS_LOOKED_AT = 3  # their longest batch is near the longest of any shuffle
STEPS_PACKED = 3  # of those with the most tokens
LOOKED_AT_TOGETHER = 64  # examples, while the longest is looked for: not all of a long one may be computed
STEPS_SHARED = 8  # in which beginnings are looked for, evenly over the epochs looked at


@dataclass(frozen=True, slots=True)
class Batches:
    """Two batches of a run.

    Args:
        longest: the one that takes the most memory. usual: one near the mean.
        per_step: batches that a device computes in a step.
        steps: optimizer steps of the run, 0 where nobody knows. steps_per_epoch: None likewise.
        tokens_per_step: on all devices, padding not counted.
        shared: the share of their tokens that is not laid down, since examples of a batch begin alike.
    """

    longest: Batch
    usual: Batch
    per_step: int
    steps: int
    steps_per_epoch: int | None
    tokens_per_step: float
    shared: float


@dataclass(frozen=True)
class Rows:
    """The training rows.

    Args:
        examples: them; empty where there is no set to look at (a stream, a model without tokenizer).
        token_counts: tokens of each example, int64 [E].
        schedule: which of them form a step.
    """

    examples: Sequence[TokenizedExample] = ()
    token_counts: Any = None
    schedule: IndexedSchedule | None = None

    @classmethod
    def of(cls, examples: Any, schedule: Schedule) -> Rows:
        """Prepared rows."""
        if not isinstance(schedule, IndexedSchedule) or not len(examples):
            return cls()
        return cls(examples, examples.token_counts, schedule)

    def tokens_learnt(self, stage: Stage) -> int:
        """Tokens of what a stage computes of all rows; 0 where they are not known."""
        if self.schedule is None or stage.learns_whole:
            return int(self.token_counts.sum()) if self.schedule is not None else 0
        return sum(stage.learnt(example).tokens for example in self.examples)

    def longest_sequence(self, config: RunConfig) -> int:
        """Tokens of the longest sequence under a config; as many as it allows where the rows are not known."""
        known: Any = self.examples
        cutoff = config.data.cutoff_length
        return min(cutoff, known.longest_sequence) if self.schedule is not None else cutoff

    def epochs(self, config: RunConfig, ranks: int) -> int:
        """Passes that a run begins under a config; 1 where nobody knows."""
        return self.schedule_under(config, ranks).total_epochs if self.schedule is not None else 1

    def schedule_under(self, config: RunConfig, ranks: int) -> IndexedSchedule:
        """The schedule with a config's batch size and length."""
        assert self.schedule is not None
        training = config.training
        return replace(
            self.schedule,
            batch_size=training.per_device_train_batch_size,
            accumulation=training.gradient_accumulation_steps,
            epochs=training.num_train_epochs,
            max_steps=training.max_steps,
            rank=0,
            world_size=ranks,
        )

    def batches(self, config: RunConfig, ranks: int, scorer: Scorer, stage: Stage) -> Batches:
        """The batches that count under a config, whose batch size and cutoff_length may differ from the prepared rows'.

        Args:
            ranks: devices that share a step.
        """
        training = config.training
        packing = packing_of(scorer, training, stage)
        size, accumulation = training.per_device_train_batch_size, training.gradient_accumulation_steps
        if self.schedule is None:
            together, every, bound = size, size * accumulation, training.tokens_per_batch
            if isinstance(bound, int):  # batches are filled from the whole step, of rows that are all alike
                (row,) = in_order([[_row(config.data.cutoff_length, 0)]], packing)[0]
                together = min(every, max(1, bound // row.tokens))
            rows = [_row(config.data.cutoff_length, number) for number in range(together)]
            (whole,) = pack_step([rows], replace(packing, tokens_per_batch=None))
            batch = _completed(whole, scorer, stage)
            tokens = float(every * ranks * config.data.cutoff_length)
            return Batches(batch, batch, -(-every // together), max(training.max_steps, 0), None, tokens, 0.0)
        schedule = self.schedule_under(config, ranks)
        cutoff = config.data.cutoff_length
        counts = np.minimum(self.token_counts, cutoff) if cutoff < self.token_counts.max() else self.token_counts
        steps = _steps(schedule)
        # batches that are bounded in tokens are filled from the whole step
        most = max if training.tokens_per_batch is None else sum
        work = np.array([most(_cost(counts[batch], scorer) for batch in step) for step in steps])

        def drawn(index: int) -> list[list[TokenizedExample]]:
            return [[cut(self.examples[row], cutoff) for row in batch] for batch in steps[index]]

        def packed(index: int) -> list[Batch]:
            return pack_step(drawn(index), packing)

        longest = [batch for index in np.argsort(-work)[:STEPS_PACKED] for batch in packed(int(index))]
        full = [
            index for index, step in enumerate(steps) if sum(map(len, step)) == max(sum(map(len, s)) for s in steps)
        ]
        middle = min(full, key=lambda index: abs(work[index] - work[full].mean()))
        usual = packed(middle)
        mean = sum(map(_tokens, usual)) / len(usual)
        return Batches(
            _completed(max(longest, key=lambda batch: scorer.tokens_computed(batch, stage.readout)), scorer, stage),
            _completed(min(usual, key=lambda batch: abs(_tokens(batch) - mean)), scorer, stage),
            len(usual),
            schedule.total_steps,
            schedule.steps_per_epoch,
            float(counts.mean() * min(schedule.examples_per_step, len(counts))),
            _shared([drawn(index) for index in full[:: -(-len(full) // STEPS_SHARED)]], packing),
        )

    def reach(self, config: RunConfig, packing: Packing) -> tuple[int, int]:
        """Tokens laid down of the longest example, and at most of all that a device computes in a step."""
        training, cutoff = config.training, config.data.cutoff_length
        count = training.per_device_train_batch_size * training.gradient_accumulation_steps
        if self.schedule is None:
            return cutoff, count * cutoff
        order = np.argsort(-self.token_counts, kind="stable")
        largest: list[int] = []
        for start in range(0, len(order), LOOKED_AT_TOGETHER):
            # no example lays down more tokens than it has
            if len(largest) == count and self.token_counts[order[start]] <= largest[0]:
                break
            rows = [self.examples[int(row)] for row in order[start : start + LOOKED_AT_TOGETHER]]
            examples = in_order([rows], replace(packing, grouping="off"))[0]
            sizes = [laid_down(example, None, packing.share) for example in examples]
            largest = sorted([*largest, *sizes])[-count:]
        return largest[-1], sum(largest)

    def full(self, config: RunConfig, ranks: int, scorer: Scorer, stage: Stage, tokens: int) -> Batch:
        """A batch of so many tokens as laid down, of the examples of the heaviest steps; of the last one only its end.

        What no loss reads behind an example's targets is left out, and examples without targets are: so but for a last target
        of each sequence all is computed, as it may be of another batch of so many tokens.
        """
        packing = packing_of(scorer, config.training, stage)
        chosen: list[TokenizedExample] = []
        reads_ends = any(isinstance(item, HeadAt) and item.place == "ends" for item in as_readouts(stage.readout))
        for example in self._heaviest(config, ranks, packing):
            if not reads_ends:
                if not any(any(part.weights) for part in example.sequences):
                    continue
                example = _to_last_target(example)
            own = laid_down(example, chosen[-1] if chosen else None, packing.share)
            if own > tokens:
                chosen += _ending(example, tokens)
                break
            chosen.append(example)
            tokens -= own
        return _completed(pack(chosen, packing.share), scorer, stage)

    def _heaviest(self, config: RunConfig, ranks: int, packing: Packing) -> Iterator[TokenizedExample]:
        """Each example once as it is computed, step by step, those with the most tokens first; without end where no set is
        known."""
        if self.schedule is None:
            yield from (_row(config.data.cutoff_length, number) for number in itertools.count())
            return
        steps = [np.concatenate(step) for step in _steps(self.schedule_under(config, ranks))]
        taken: set[int] = set()
        for index in np.argsort([-self.token_counts[step].sum() for step in steps], kind="stable"):
            new = [int(row) for row in steps[index] if row not in taken]
            taken.update(new)
            yield from in_order([[self.examples[row] for row in new]], packing)[0]


class TrunkStandIn(Trunk):
    """States below the layers that learn, of which only the layer and the width are known.

    Args:
        layer: number of layers below. width: of a state. dtype: of an embedding's weights.
    """

    def __init__(self, layer: int, width: int, dtype: torch.dtype) -> None:
        super().__init__(layer, np.empty((0, width), np.float32), dtype)

    def of(self, rows_T: torch.Tensor, like: nn.Module) -> torch.Tensor:
        """Fake states [T, H]."""
        return rows_T.new_empty((len(rows_T), self.states_RH.shape[1]), dtype=self.dtype)


def cut(example: TokenizedExample, cutoff: int) -> TokenizedExample:
    """An example with sequences of at most `cutoff` tokens."""
    if all(len(sequence.input_ids) <= cutoff for sequence in example.sequences):
        return example
    sequences = tuple(TokenSequence(part.input_ids[:cutoff], part.weights[:cutoff]) for part in example.sequences)
    return replace(example, sequences=sequences)


def _to_last_target(example: TokenizedExample) -> TokenizedExample:
    """An example without what no loss reads behind its targets; whole where it has none."""
    sequences = []
    for part in example.sequences:
        end = max(
            (index for index, weight in enumerate(part.weights, start=1) if weight > 0), default=len(part.weights)
        )
        sequences.append(TokenSequence(part.input_ids[:end], part.weights[:end]))
    return replace(example, sequences=tuple(sequences))


def batch_tokens(batch: Batch, scorer: Scorer) -> int:
    """Tokens of a packed row, whether all are computed or not, or of padded rows, padding included."""
    return len(batch.input_ids_T) if scorer.route == "segmented" else scorer.tokens_computed(batch)


def _row(length: int, number: int) -> TokenizedExample:
    """A row of tokens that are all trained, and that begins like no other."""
    tokens = TokenSequence((number,) + (0,) * (length - 1), (0.0,) + (1.0,) * (length - 1))
    return TokenizedExample((tokens,), Origin("", number), length)


def _ending(example: TokenizedExample, tokens: int) -> list[TokenizedExample]:
    """The last `tokens` of an example, as evenly of each sequence as they are long, with whatever is read there; nothing
    where that is too little. Each begins with a token of its own, so that they share nothing."""
    sequences = list(example.sequences)
    shortest_first = sorted(range(len(sequences)), key=lambda number: len(sequences[number].input_ids))
    for done, number in enumerate(shortest_first):
        part = sequences[number]
        own = min(len(part.input_ids), tokens // (len(sequences) - done))
        if own < min(2, len(part.input_ids)):  # a target and what predicts it
            return []
        tokens -= own
        sequences[number] = TokenSequence((number, *part.input_ids[-own:][1:]), (0.0, *part.weights[-own:][1:]))
    return [replace(example, sequences=tuple(sequences))]


def _shared(steps: Sequence[Sequence[Sequence[TokenizedExample]]], packing: Packing) -> float:
    """The share of the steps' tokens that is not laid down."""
    examples = [example for step in steps for batch in step for example in batch]
    all_tokens = sum(len(sequence.input_ids) for example in examples for sequence in example.sequences)
    return 1 - sum(_tokens(batch) for step in steps for batch in pack_step(step, packing)) / all_tokens


def _steps(schedule: IndexedSchedule) -> list[list[list[int]]]:
    """The rows of each batch of each step, of the first epochs."""
    epochs = range(min(EPOCHS_LOOKED_AT, schedule.total_epochs))
    places = itertools.islice(itertools.product(epochs, range(schedule.steps_per_epoch)), schedule.total_steps)
    return [found for place in places if (found := schedule.indices(*place))]


def _cost(lengths: Any, scorer: Scorer) -> float:
    if scorer.route == "padded":
        return float(len(lengths) * lengths.max())
    return float(lengths.sum())


def _tokens(batch: Batch) -> int:
    return len(batch.input_ids_T)


def _completed(batch: Batch, scorer: Scorer, stage: Stage) -> Batch:
    """The batch with what is computed of the examples beforehand: states of the trunk, a reference's log-probabilities."""
    if scorer.trunk is not None:  # which row of it does not matter
        batch = replace(batch, trunk_rows_T=torch.zeros_like(batch.input_ids_T))
    if not getattr(stage, "reference", False):
        return batch
    examples = len(batch.leaves) // 2
    return replace(batch, extras={**batch.extras, **{name_of(number): torch.zeros(examples) for number in range(2)}})
