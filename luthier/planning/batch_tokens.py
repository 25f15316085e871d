"""How many tokens a batch may hold: as many as a memory budget is predicted to hold, found once before a run begins.

The batches that are tried are full ones, each the beginning of the next but for its last piece, so their peaks grow with
their tokens and a larger budget never gives fewer tokens.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any

from luthier.config.schema import RunConfig
from luthier.foundation.errors import ConfigError, UserError
from luthier.foundation.files import human_bytes
from luthier.planning.planner import Planner
from luthier.planning.step_trace import UntraceableError
from luthier.scoring.dynamic_positions import independent_length
from luthier.training.grouping import Packing, packing_of

FREE_SHARE = 0.9  # of the free memory makes the budget that is not given: other programs want some
PREDICTED_SHARE = 0.9  # of a budget beyond the process itself is planned with: predictions are off by so much
TRIED_PER_DOUBLING = 16  # numbers of tokens are tried a twenty-third apart


class BudgetTooSmallError(UserError):
    """The budget does not hold the longest example alone, which has `tokens`.

    Args:
        standing_bytes: what weights, the optimizer and the process take, whatever the batch.
    """

    def __init__(
        self, tokens: int, peak_bytes: int, budget_bytes: int, origin: str, *, standing_bytes: int, given: bool
    ) -> None:
        self.tokens = tokens
        more = "Raise training.memory_budget_gib" if given else "Free memory"
        if standing_bytes < budget_bytes:
            more += ", set training.gradient_checkpointing=true, or lower data.cutoff_length."
        else:
            more += f": weights, optimizer and process take {human_bytes(standing_bytes)}, whatever the rows."
        super().__init__(
            f"training.tokens_per_batch is auto, but the longest example alone, of {tokens:,} tokens, is predicted to take "
            f"{human_bytes(peak_bytes)}, and {human_bytes(budget_bytes)} may be used ({origin}), a tenth of which is kept "
            "for what the prediction is off by.",
            more,
        )


@dataclass(frozen=True, slots=True)
class BatchTokens:
    """What a budget holds.

    Args:
        tokens: that a batch may lay down.
        peak_bytes: predicted for a batch of so many.
        budget_bytes: of one device, the process itself included. origin: where that comes from, for people.
        whole_steps: whether all that a device computes in a step makes one batch.
    """

    tokens: int
    peak_bytes: int
    budget_bytes: int
    origin: str
    whole_steps: bool

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def __str__(self) -> str:
        merged = "all of a step in one" if self.whole_steps else "the examples of a step in as few as that gives"
        return (
            f"batches hold at most {self.tokens:,} tokens, {merged}: predicted to take {human_bytes(self.peak_bytes)} of "
            f"{human_bytes(self.budget_bytes)} ({self.origin})"
        )


def budget_of(planner: Planner, config: RunConfig, free_bytes: int | None) -> tuple[int, str]:
    """Bytes that one device may hold, and where the number comes from.

    Args:
        free_bytes: of this machine's device, for one process; None: the plan is for another one.
    """
    asked = config.training.memory_budget_gib
    if asked is not None:
        return int(asked * 2**30), "training.memory_budget_gib"
    if free_bytes is None:
        return planner.device.usable_bytes, f"what {planner.device.name} has"
    return planner.fixed_bytes + int(
        FREE_SHARE * free_bytes
    ), f"{FREE_SHARE:.0%} of what was free, and the process itself"


def choose_tokens(planner: Planner, config: RunConfig, free_bytes: int | None) -> BatchTokens:
    """The most tokens whose predicted peak is within the budget; no more than a step has.

    Args:
        config: whose training.tokens_per_batch is auto. free_bytes: see `budget_of`.

    Raises:
        ConfigError: batches can't be merged under this config. UserError: nobody can know what they take.
        BudgetTooSmallError: the longest example alone takes more.
    """
    _check(planner, config)
    budget, origin = budget_of(planner, config, free_bytes)
    room = planner.fixed_bytes + PREDICTED_SHARE * (budget - planner.fixed_bytes)
    longest, most = planner.subject.rows.reach(config, _packing(planner, with_tokens(config, 1)))

    @cache
    def peak(tokens: int) -> int:
        try:
            return planner.full_batch(with_tokens(config, tokens), tokens, alone=tokens == most)
        except UntraceableError as error:
            raise UserError(
                f"training.tokens_per_batch auto needs a prediction, and the model's step could not be traced ({error}).",
                "Set a number in its place.",
            ) from error

    def found(tokens: int) -> BatchTokens:
        return BatchTokens(tokens, peak(tokens), budget, origin, tokens == most)

    if peak(most) <= room:
        return found(most)
    if peak(longest) > room:
        given = config.training.memory_budget_gib is not None
        standing = planner.standing(with_tokens(config, longest))
        raise BudgetTooSmallError(longest, peak(longest), budget, origin, standing_bytes=standing, given=given)
    return found(_last_within(room, peak, _between(longest, most), most))


def with_tokens(config: RunConfig, tokens: int) -> RunConfig:
    """The config with a number in the place of `auto`."""
    return config.model_copy(update={"training": config.training.model_copy(update={"tokens_per_batch": tokens})})


def _between(longest: int, most: int) -> list[int]:
    """Numbers of tokens from the longest example's up to, but not with, a whole step's."""
    numbers = [longest]
    while (following := max(numbers[-1] + 1, round(numbers[-1] * 2 ** (1 / TRIED_PER_DOUBLING)))) < most:
        numbers.append(following)
    return numbers


def _last_within(room: float, peak: Callable[[int], int], tried: Sequence[int], most: int) -> int:
    """The last of some numbers whose peak is within the room; the first one's is, that of `most`, which ends them, is not.

    Peaks are nearly a line, so the place is guessed from those known on both sides; every fifth time the middle is taken.
    """
    numbers = [*tried, most]
    low, high, turn = 0, len(tried), 0
    while high - low > 1:
        turn += 1
        below, above = peak(numbers[low]), peak(numbers[high])
        guess = numbers[low] + (room - below) * (numbers[high] - numbers[low]) / (above - below)
        place = (low + high) // 2 if turn % 5 == 0 else bisect_right(numbers, guess) - 1
        place = min(max(place, low + 1), high - 1)
        low, high = (place, high) if peak(numbers[place]) <= room else (low, place)
    return numbers[low]


def _packing(planner: Planner, config: RunConfig) -> Packing:
    return packing_of(planner.scorer(config), config.training, planner.subject.stage)


def _check(planner: Planner, config: RunConfig) -> None:
    """Refuse what merging would change, or does not bound."""
    scorer = planner.scorer(config)
    problem = ""
    if scorer.route == "padded":
        reason = f": {scorer.finding.reason}" if scorer.finding.reason else ""
        problem = f"this run computes padded rows, whose memory follows from the longest one{reason}"
    elif planner.subject.rows.longest_sequence(config) > (alone := independent_length(scorer.model)):
        problem = (
            f"a sequence of more than {alone:,} tokens stretches the rotary positions of all that share its batch, so "
            "merged ones would have others"
        )
    elif scorer.router_loss.arguments:
        problem = (
            "the router's load-balancing loss is a mean over each batch, so merged ones would have another "
            "(model.router_aux_loss_coef: 0 turns it off)"
        )
    if problem:
        raise ConfigError([f"training.tokens_per_batch is auto, but {problem}; set a number or leave it unset"])
