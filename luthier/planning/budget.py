"""What is changed of a chosen config so that the run fits into a budget of minutes: the rules of docs/auto.md.

Fewer epochs come first. Then a part of one epoch is trained: of as many rows as there is time for, in steps as the rules
choose them for so few; and where that gives too few steps to learn from, in smaller ones, of the shorter rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from luthier.foundation.errors import UserError
from luthier.planning.auto import (
    Choice,
    Facts,
    all_rows,
    batch_for,
    changed,
    held_share,
    rows_of_a_step,
    taken_share,
    tokens_of_a_step,
    total_steps,
    trained_rows,
    value_of,
)

LEAST_STEPS = 10  # of a run that learns anything
LEAST_BATCH = 4  # rows of a step, as the rules have it; half of it where there would be too few steps
FEW_STEPS = 40  # a run of fewer is scored once
FEW_ROWS = 500  # of a sample so small a fifth is held out
SCORING = 1 / 3  # of the time of training: what scoring a row takes
TEXT_SCORING = 0.05  # of the time may go into scoring the held-out texts once
LEAST_BLOCK = 128  # tokens
BUDGET_SHARE = 0.85  # for training and evaluations, of what is left: a prediction is good to a sixth or so


@dataclass(frozen=True, slots=True)
class Budget:
    """The minutes a command may take, and the seconds of them that are not for training.

    Args:
        gone: what looking and planning took. to_come: what reading and writing weights and tokenizing will take.
    """

    minutes: float
    gone: float
    to_come: float

    @property
    def seconds(self) -> float:
        """What is left for training and evaluations."""
        return max(0.0, BUDGET_SHARE * (60 * self.minutes - self.gone - self.to_come))

    def refusal(self, steps: int, batch: int, needed: float) -> UserError:
        """That it is too small.

        Args:
            steps: that there is time for. needed: seconds of training that would be enough.
        """
        whole = self.gone + self.to_come + needed / BUDGET_SHARE
        return UserError(
            f"{self.minutes:.3g} minutes are too few to learn from: {self.gone:.0f} seconds went into looking at rows, model and "
            f"machine, {self.to_come:.0f} are for reading and writing, and the {self.seconds:.0f} that may be trained for are {steps} "
            f"steps of {batch}, on a machine as busy as this one is now; {LEAST_STEPS} are the least.",
            f"Give it --budget {math.ceil(whole / 60)}, or take a smaller model or shorter rows.",
        )


def run_seconds(facts: Facts, choices: tuple[Choice, ...], seconds_per_token: float) -> float:
    """Training and evaluations."""
    worth = total_steps(facts, choices) + evaluations(facts, choices) * scoring_steps(facts, choices)
    return seconds_per_token * tokens_of_a_step(facts, choices) * worth


def scoring_steps(facts: Facts, choices: tuple[Choice, ...]) -> float:
    """How many steps of training take as long as one evaluation."""
    held_out = value_of(choices, "data.validation")
    held = (all_rows(facts, choices) - trained_rows(facts, held_out, choices)) * taken_share(facts, choices)
    return SCORING * held / rows_of_a_step(choices)


def evaluations(facts: Facts, choices: tuple[Choice, ...]) -> float:
    """How many there are; labels are predicted once more at the end."""
    often = value_of(choices, "training.eval_strategy")
    if often is None:
        return 0
    during: float = value_of(choices, "training.num_train_epochs") if often == "epoch" else 4
    return during + predictions(facts)


def predictions(facts: Facts) -> int:
    """How often the held-out rows are scored once more when training is done: where labels are predicted."""
    return int(facts.kind in ("classes", "numbers"))


def evaluations_after(facts: Facts, choices: tuple[Choice, ...]) -> int:
    """How many come after the last step."""
    return 1 + predictions(facts) if value_of(choices, "training.eval_strategy") else 0


def within(facts: Facts, choices: tuple[Choice, ...], seconds_per_token: float, budget: Budget) -> tuple[Choice, ...]:
    """Shorten a run to the time that is left for it.

    Raises:
        UserError: not even ten small steps fit.
    """
    epochs = value_of(choices, "training.num_train_epochs")
    whole = run_seconds(facts, choices, seconds_per_token)
    if whole <= budget.seconds:
        return choices
    what = "blocks" if facts.kind == "text" else "rows"
    rows = trained_rows(facts, value_of(choices, "data.validation"), choices)
    wanted = f"{epochs} epoch{'s' if epochs > 1 else ''} of {rows:,} {what} would take {minutes_of(whole)}"
    for fewer in range(epochs - 1, 0, -1):
        less = _again(facts, changed(choices, Choice("training.num_train_epochs", fewer, f"the budget's: {wanted}")))
        if run_seconds(facts, less, seconds_per_token) <= budget.seconds:
            return less
    part = _part_of_text if facts.kind == "text" else _part_of_rows
    return part(facts, choices, seconds_per_token, budget, wanted)


def _part_of_rows(
    facts: Facts, choices: tuple[Choice, ...], seconds_per_token: float, budget: Budget, wanted: str
) -> tuple[Choice, ...]:
    """A random sample of the rows, once."""
    held_out = value_of(choices, "data.validation")
    for limits, least in _row_ways(facts, choices):
        limited = changed(choices, *limits)
        per_row = seconds_per_token * tokens_of_a_step(facts, limited) / rows_of_a_step(limited)
        kept = taken_share(facts, limited)
        for share, often in ((0.1, 4), (0.2, 4), (0.2, 1)) if held_out is not None else ((0.0, 0),):
            scored = often + predictions(facts) if often else 0
            worth = 1 - share + SCORING * share * scored
            rows = int(min(budget.seconds / (per_row * worth), kept * facts.rows))
            batch = min(rows_of_a_step(choices), batch_for(int(rows * (1 - share)), least))
            steps = int(rows * (1 - share)) // batch
            if (share == 0.1 and rows < FEW_ROWS) or (often == 4 and steps < FEW_STEPS):
                continue
            if steps >= LEAST_STEPS:
                drawn = min(facts.rows, int(steps * batch / (1 - share) / kept))
                return _sampled(facts, limited, drawn, batch, share, often, wanted)
    raise budget.refusal(steps, batch, LEAST_STEPS * batch * per_row * worth / (1 - share))


def _row_ways(facts: Facts, choices: tuple[Choice, ...]) -> Iterator[tuple[list[Choice], int]]:
    """Limits of length, and the fewest rows of a step, the ones that change least first."""
    yield [], LEAST_BATCH
    yield [], LEAST_BATCH // 2
    for share in (0.5, 0.25):
        shorter = max(64, 64 * math.ceil(facts.length_at(share) / 64))
        if shorter < value_of(choices, "data.cutoff_length"):
            kept = sum(tokens <= shorter for tokens in facts.token_lengths) / len(facts.token_lengths)
            why = f"{kept:.0%} of the rows have no more tokens: the budget is too small for longer ones"
            yield (
                [
                    Choice("data.cutoff_length", shorter, why),
                    Choice("data.over_length", "drop", "longer rows are left out, rather than cut"),
                ],
                LEAST_BATCH // 2,
            )


def _sampled(
    facts: Facts, choices: tuple[Choice, ...], drawn: int, batch: int, share: float, often: int, wanted: str
) -> tuple[Choice, ...]:
    """The config of a run on so many rows."""
    sample = {"path": value_of(choices, "data.train"), "max_samples": drawn}
    found = [Choice("data.train", sample, f"a random sample for the budget: {wanted}")]
    if share:
        part = "a tenth" if share < 0.2 else "a fifth"
        found.append(Choice("data.validation", share, f"{part} of the sample is held out, and scored"))
    return _once(facts, changed(choices, *found), batch, often)


def _part_of_text(
    facts: Facts, choices: tuple[Choice, ...], seconds_per_token: float, budget: Budget, wanted: str
) -> tuple[Choice, ...]:
    """So many steps, of blocks as long as there is time for ten of them."""
    length = value_of(choices, "data.cutoff_length")
    for block, batch in _block_ways(choices):
        held = _fewer_texts(facts, choices, budget.seconds / seconds_per_token)
        shorter = () if block == length else (Choice("data.cutoff_length", block, "shorter blocks, for more steps"),)
        found = _once(facts, changed(choices, *held, *shorter), batch, 1)
        per_step = seconds_per_token * block * batch
        scoring = per_step * scoring_steps(facts, found)
        for often in (4, 1) if scoring else (0,):
            steps = min(int((budget.seconds - often * scoring) / per_step), total_steps(facts, found))
            if steps >= (FEW_STEPS if often == 4 else LEAST_STEPS):
                most = Choice("training.max_steps", steps, f"for the budget: {wanted}")
                return _once(facts, changed(found, most), batch, often)
    raise budget.refusal(max(0, steps), batch, LEAST_STEPS * per_step + scoring)


def _block_ways(choices: tuple[Choice, ...]) -> Iterator[tuple[int, int]]:
    """Lengths of a block, and blocks of a step, the ones that change least first."""
    length, batch = value_of(choices, "data.cutoff_length"), rows_of_a_step(choices)
    while batch > LEAST_BATCH:
        yield length, batch
        batch //= 2
    yield length, batch
    while length > 2 * LEAST_BLOCK:
        length //= 2
        yield length, batch
    batch = min(batch, LEAST_BATCH // 2)
    yield length, batch
    yield min(length, LEAST_BLOCK), batch


def _fewer_texts(facts: Facts, choices: tuple[Choice, ...], tokens: float) -> list[Choice]:
    """Held-out texts that can be scored in a twentieth of the time, or one.

    Args:
        tokens: that could be trained on in all the time.
    """
    held_out = value_of(choices, "data.validation")
    if held_out is None:
        return []
    most = max(1, int(TEXT_SCORING / SCORING * tokens * facts.rows / facts.trained_tokens))
    if most >= held_share(facts, held_out) * facts.rows:
        return []
    texts = "one text is" if most == 1 else f"{most} texts are"
    return [Choice("data.validation", most, f"{texts} held out: scoring more would take too much of the budget")]


def _once(facts: Facts, choices: tuple[Choice, ...], batch: int, often: int) -> tuple[Choice, ...]:
    """One epoch or less, in steps of so many rows, scored four times or once."""
    at_a_time = min(batch, value_of(choices, "training.per_device_train_batch_size"))
    pieces = batch // at_a_time
    found = [
        Choice("training.num_train_epochs", 1, "the budget's"),
        Choice("training.per_device_train_batch_size", at_a_time, "many small steps learn little data best"),
    ]
    if value_of(choices, "training.gradient_accumulation_steps"):
        found.append(Choice("training.gradient_accumulation_steps", pieces, f"a step has {batch} rows"))
    return _again(facts, changed(choices, *found), often)


def _again(facts: Facts, choices: tuple[Choice, ...], often: int = 4) -> tuple[Choice, ...]:
    """What depends on the number of steps and epochs; in the only epoch the held-out rows are scored so often."""
    steps = total_steps(facts, choices)
    choices = changed(
        choices, Choice("training.logging_steps", max(1, steps // 40), "about 40 points of the loss curve")
    )
    if value_of(choices, "training.num_train_epochs") > 1 or value_of(choices, "training.eval_strategy") is None:
        return choices
    if often == 1:
        once = ("training.eval_steps", "training.save_steps", "training.load_best_model_at_end")
        return changed(
            tuple(choice for choice in choices if choice.key not in once),
            Choice("training.eval_strategy", "epoch", "the held-out rows are scored at the end: the run is short"),
            Choice("training.save_strategy", "epoch", "at the end"),
        )
    return changed(
        choices,
        Choice("training.eval_strategy", "steps", "the held-out rows show how it goes"),
        Choice("training.eval_steps", 0.25, "four times in the only epoch"),
        Choice("training.save_strategy", "steps", "so that any evaluated moment can be gone back to"),
        Choice("training.save_steps", 0.25, "as often"),
    )


def minutes_of(seconds: float) -> str:
    """For people: whole minutes, or seconds below one and a half."""
    return f"about {seconds:.0f} seconds" if seconds < 90 else f"about {seconds / 60:.0f} minutes"
