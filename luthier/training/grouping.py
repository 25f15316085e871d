"""Which examples are computed together: those of a step that begin alike, in rows of a bounded length; and, where the
user allows it, which examples form a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain, pairwise
from typing import Literal

from luthier.config.training_section import TrainingConfig
from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample
from luthier.data.packing import pack
from luthier.data.sharing import shared
from luthier.foundation.errors import ConfigError
from luthier.foundation.seeding import permutation
from luthier.scoring.scorer import Scorer
from luthier.training.schedule import IndexedSchedule, Schedule, in_batches
from luthier.training.stage import Stage

Grouping = Literal["off", "within_step", "within_buffer"]


@dataclass(frozen=True, slots=True)
class Packing:
    """How the examples of a step become batches.

    Args:
        share: whether a batch lays down once what its sequences begin with.
        grouping: off, each batch as it was drawn; else the examples of a step (of this rank) that begin alike come into
            the same batch.
        tokens_per_batch: a batch holds at most so many tokens as laid down, however many examples that is (one that is
            longer is a batch of its own); None: batches keep their number of examples.
        trunk_starts: see `luthier.data.packing.pack`; of what `learnt` gives.
        padded: every sequence of a batch takes as many tokens as its longest one.
        learnt: what of an example is computed, a stage's; None: all of it.
    """

    share: bool = False
    grouping: Grouping = "off"
    tokens_per_batch: int | None = None
    trunk_starts: Sequence[int] | None = None
    padded: bool = False
    learnt: Callable[[TokenizedExample], TokenizedExample] | None = None


def packing_of(scorer: Scorer, training: TrainingConfig, stage: Stage) -> Packing:
    """How a run's batches are laid down. Raises ConfigError as `shares` does."""
    share = shares(scorer, training)
    assert training.tokens_per_batch != "auto", "it is settled before a run is put together"
    grouping, padded = training.grouping if share else "off", scorer.route == "padded"
    return Packing(share, grouping, training.tokens_per_batch, padded=padded, learnt=stage.learnt)


def shares(scorer: Scorer, training: TrainingConfig) -> bool:
    """Whether a run's batches lay down once what their sequences begin with.

    Raises:
        ConfigError: that was asked for, and the route computes every row whole; or a grouping was that changes which examples
            form a step for its sake, and there is none.
    """
    apart = scorer.why_apart(training=True)
    can, asked = scorer.route == "segmented", training.prefix_sharing == "on"
    share = can if asked else training.prefix_sharing == "auto" and not apart
    problems = []
    if asked and not can:
        problems.append(f"training.prefix_sharing is on, but {apart}; set it to auto")
    if training.grouping == "within_buffer" and not share:
        problems.append(
            "training.grouping is within_buffer, which fills a step with examples that begin alike, so that their beginning is "
            f"computed once, but {apart}; set it to within_step"
            f"{', or training.prefix_sharing to on, which shares all the same' if can else ''}"
        )
    if problems:
        raise ConfigError(problems)
    return share


def pack_step(drawn: Sequence[Sequence[TokenizedExample]], packing: Packing) -> list[Batch]:
    """The batches of a step from those that were drawn for it; the same examples, once each."""
    drawn = in_order(drawn, packing)
    if packing.tokens_per_batch is not None:
        examples = list(chain.from_iterable(drawn))
        if packing.padded:  # those of one length beside each other, so that little is padded
            drawn = _bounded_in_rows(sorted(examples, key=_longest), packing.tokens_per_batch)
        else:
            drawn = _bounded(examples, packing.tokens_per_batch, packing.share)
    return [pack(batch, packing.share, packing.trunk_starts) for batch in drawn]


def in_order(drawn: Sequence[Sequence[TokenizedExample]], packing: Packing) -> Sequence[Sequence[TokenizedExample]]:
    """What is computed of the examples drawn for a step, those that begin alike together."""
    if packing.learnt is not None:
        drawn = [[packing.learnt(example) for example in batch] for batch in drawn]
    if packing.grouping != "off":
        flat = iter(sorted(chain.from_iterable(drawn), key=_beginning))
        drawn = [[next(flat) for _ in batch] for batch in drawn]
    return drawn


def _beginning(example: TokenizedExample) -> tuple[int, ...]:
    return example.sequences[0].input_ids


def _bounded(examples: Sequence[TokenizedExample], most: int, share: bool) -> list[list[TokenizedExample]]:
    """Runs of examples of at most `most` tokens as laid down, or of one that is longer."""
    batches: list[list[TokenizedExample]] = []
    start = 0
    while start < len(examples):
        end, filled = start + 1, laid_down(examples[start], None, share)
        while end < len(examples):
            filled += laid_down(examples[end], examples[end - 1], share)
            if filled > most:
                break
            end += 1
        # a few tokens in common are not worth a segment of their own
        while share and end > start + 1 and _tokens_of(examples[start:end]) > most:
            end -= 1
        batches.append(list(examples[start:end]))
        start = end
    return batches


def _bounded_in_rows(examples: Sequence[TokenizedExample], most: int) -> list[list[TokenizedExample]]:
    """Runs of examples of at most `most` tokens, padding among them, or of one that is longer."""
    batches: list[list[TokenizedExample]] = []
    rows = width = 0
    for example in examples:
        rows, width = rows + len(example.sequences), max(width, _longest(example))
        if not batches or rows * width > most:
            batches.append([])
            rows, width = len(example.sequences), _longest(example)
        batches[-1].append(example)
    return batches


def _longest(example: TokenizedExample) -> int:
    """Tokens of its longest sequence."""
    return max(len(sequence.input_ids) for sequence in example.sequences)


def _tokens_of(examples: Sequence[TokenizedExample]) -> int:
    """Tokens that a batch of examples lays down where it shares."""
    ids = [sequence.input_ids for example in examples for sequence in example.sequences]
    return sum(part.end - part.start for part in shared(ids))


def laid_down(example: TokenizedExample, before: TokenizedExample | None, share: bool) -> int:
    """Tokens that an example adds to a batch: as its first what it lays down; behind another one nearly that, as if all that
    its sequences share with the one before them were laid down once (see `luthier.data.sharing.shared`)."""
    if not share:
        return example.tokens
    if before is None:
        return _tokens_of([example])
    ids = [before.sequences[-1].input_ids, *(sequence.input_ids for sequence in example.sequences)]
    return example.tokens - sum(_common(one, other) for one, other in pairwise(ids))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many ids two sequences begin with alike."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def with_dealing(schedule: Schedule, examples: Sequence[TokenizedExample], packing: Packing) -> Schedule:
    """A schedule whose ranks get equally much to compute, where grouping allows it and the examples are known."""
    if packing.grouping == "off" or not isinstance(schedule, IndexedSchedule):
        return schedule
    return replace(schedule, deal=partial(dealt, examples, packing))


def dealt(
    examples: Sequence[TokenizedExample], packing: Packing, step: Sequence[int], batch_size: int, ranks: int
) -> list[list[int]]:
    """A step's batches, each of examples that begin alike, dealt so that the ranks have equally much to compute.

    The longest batches are given out first, each to the rank that has the least so far and takes more (Graham, Bounds on
    Multiprocessing Timing Anomalies, 1969): all ranks wait for the one that is last.

    Args:
        step: example indices of an optimizer step.

    Returns:
        The batches, rank r's at r, r + ranks, r + 2 ranks, ...; as many for each as if they were taken in turn.
    """
    learnt = packing.learnt or (lambda example: example)
    known = {index: learnt(examples[index]) for index in step}
    batches = in_batches(sorted(step, key=lambda index: _beginning(known[index])), batch_size)
    work = [
        _tokens_of([known[index] for index in batch]) if packing.share else sum(known[index].tokens for index in batch)
        for batch in batches
    ]
    room = [len(batches[rank::ranks]) for rank in range(ranks)]
    given: list[list[list[int]]] = [[] for _ in range(ranks)]
    loads = [0] * ranks
    for number in sorted(range(len(batches)), key=lambda each: -work[each]):
        rank = min((rank for rank in range(ranks) if len(given[rank]) < room[rank]), key=lambda each: loads[each])
        given[rank].append(batches[number])
        loads[rank] += work[number]
    return [given[place % ranks][place // ranks] for place in range(len(batches))]


@dataclass(frozen=True, eq=False)
class GroupedOrder:
    """The order of each epoch of a schedule, see `regrouped`. Processes that load data are given it, so it is no function
    within another, which can't be pickled.

    Args:
        schedule: what orders the examples before they are grouped.
    """

    schedule: IndexedSchedule
    examples: Sequence[TokenizedExample]
    buffer_size: int
    _made: dict[int, list[int]] = field(default_factory=dict, repr=False)

    def __call__(self, epoch: int) -> list[int]:
        """Example indices in an epoch's order; that of two epochs is kept."""
        if epoch not in self._made:
            for old in list(self._made)[:-1]:
                del self._made[old]
            plan = self.schedule
            order, size = plan.shuffled(epoch), plan.examples_per_step
            self._made[epoch] = regrouped(order, self.examples, size, self.buffer_size, plan.seed, epoch)
        return self._made[epoch]


def regrouped(
    order: Sequence[int], examples: Sequence[TokenizedExample], step_size: int, buffer_size: int, seed: int, epoch: int
) -> list[int]:
    """An epoch's order in which the steps hold examples that begin alike.

    The shuffled order is cut into buffers of whole steps; a buffer's examples are sorted by their ids and cut into
    steps, and its steps are shuffled. Each example still comes once an epoch, but a step's examples are no independent
    draw any more: its gradient is that of one schema or one system prompt.

    Args:
        order: example indices, shuffled.
        step_size: examples of an optimizer step.
        buffer_size: examples that are sorted together; rounded up to whole steps.
    """
    size = step_size * max(1, -(-buffer_size // step_size))
    found: list[int] = []
    for number, start in enumerate(range(0, len(order), size)):
        buffer = sorted(order[start : start + size], key=lambda index: _beginning(examples[index]))
        steps = [buffer[begin : begin + step_size] for begin in range(0, len(buffer), step_size)]
        full = len(buffer) // step_size  # a shorter last step of the epoch stays its last
        shuffled = permutation(full, seed, "grouping", epoch, number)
        found.extend(chain.from_iterable(steps[index] for index in [*shuffled, *range(full, len(steps))]))
    return found
