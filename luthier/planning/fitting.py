"""What is changed of a chosen config so that the run fits into memory, and into a budget of minutes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from luthier.foundation.errors import UserError
from luthier.foundation.files import human_bytes
from luthier.planning.auto import (
    Choice,
    Facts,
    Prediction,
    all_rows,
    changed,
    chosen_method,
    rows_of_a_step,
    taken_share,
    total_steps,
    trained_rows,
    value_of,
)

LEAST_STEPS = 10  # of a run that learns anything
MEMORY_SHARE = 0.8  # of what is free: a prediction is off by a few percent, and other programs want some
Predict = Callable[[tuple[Choice, ...]], Prediction]


def fit(facts: Facts, choices: tuple[Choice, ...], predict: Predict) -> tuple[Choice, ...]:
    """Change what must be for the run to fit into memory, the cheapest change first.

    Raises:
        UserError: it does not fit with any.
    """
    room = int(MEMORY_SHARE * facts.free_bytes)
    found = predict(choices)
    least = found.peak_bytes
    for change in (_smaller_batches, _checkpointing, _adapters, _quantized, _shorter):
        while found.peak_bytes > room and (following := change(facts, choices, found, room)) is not None:
            choices, found = following, predict(following)
            least = min(least, found.peak_bytes)
    if found.peak_bytes > room:
        raise UserError(
            f"{value_of(choices, 'model')} can't be trained here: it would take at least {human_bytes(least)}, and "
            f"{human_bytes(room)} may be used ({human_bytes(facts.free_bytes)} are free).",
            "Use a smaller model or a larger machine; `luthier plan` shows what takes the room.",
        )
    return choices


def _too_much(found: Prediction, room: int) -> str:
    return f"without it the run would take {human_bytes(found.peak_bytes)} of {human_bytes(room)}"


def _smaller_batches(
    facts: Facts, choices: tuple[Choice, ...], found: Prediction, room: int
) -> tuple[Choice, ...] | None:
    batch = value_of(choices, "training.per_device_train_batch_size")
    if batch == 1:
        return None
    pieces = 2 * value_of(choices, "training.gradient_accumulation_steps", 1)
    why = f"half of it at a time: {_too_much(found, room)}"
    return changed(
        choices,
        Choice("training.per_device_train_batch_size", batch // 2, why),
        Choice("training.gradient_accumulation_steps", pieces, f"a step still has {batch // 2 * pieces} rows"),
    )


def _checkpointing(
    facts: Facts, choices: tuple[Choice, ...], found: Prediction, room: int
) -> tuple[Choice, ...] | None:
    if value_of(choices, "training.gradient_checkpointing"):
        return None
    why = f"activations are computed again instead of kept: {_too_much(found, room)}"
    return changed(choices, Choice("training.gradient_checkpointing", True, why))


def _adapters(facts: Facts, choices: tuple[Choice, ...], found: Prediction, room: int) -> tuple[Choice, ...] | None:
    if value_of(choices, "method") != "full":
        return None
    few = replace(facts, reads_both_ways=False, trained_tokens=min(facts.trained_tokens, 4_999_999))
    method, rate = chosen_method(few)
    return changed(choices, replace(method, reason=f"not the whole model: {_too_much(found, room)}"), rate)


def _quantized(facts: Facts, choices: tuple[Choice, ...], found: Prediction, room: int) -> tuple[Choice, ...] | None:
    model = value_of(choices, "model")
    if not facts.can_quantize or isinstance(model, dict):
        return None
    why = f"frozen weights in 4 bits: {_too_much(found, room)}"
    return changed(choices, Choice("model", {"name": model, "quantization": {"bits": 4}}, why))


def _shorter(facts: Facts, choices: tuple[Choice, ...], found: Prediction, room: int) -> tuple[Choice, ...] | None:
    length = value_of(choices, "data.cutoff_length")
    if length <= 128:
        return None
    shorter = 64 * math.ceil(length / 2 / 64)
    cut = sum(tokens > shorter for tokens in facts.token_lengths) / len(facts.token_lengths)
    what = "blocks of half the length" if facts.kind == "text" else f"{cut:.0%} of the rows are cut"
    return changed(choices, Choice("data.cutoff_length", shorter, f"{what}: {_too_much(found, room)}"))


def run_seconds(facts: Facts, choices: tuple[Choice, ...], seconds_per_step: float) -> float:
    """Training and evaluations; a row that is only scored takes a third of the time of one that is trained on."""
    held_out = value_of(choices, "data.validation")
    held = (all_rows(facts) - trained_rows(facts, held_out)) * taken_share(facts, choices)
    often = value_of(choices, "training.eval_strategy")
    evaluations = {"epoch": value_of(choices, "training.num_train_epochs"), "steps": 4}.get(often, 0)
    worth: float = total_steps(facts, choices) + evaluations * held / rows_of_a_step(choices) / 3
    return worth * seconds_per_step


def within(facts: Facts, choices: tuple[Choice, ...], seconds_per_step: float, seconds: float) -> tuple[Choice, ...]:
    """Shorten a run to the seconds that are left for it: fewer epochs first, then fewer rows.

    Raises:
        UserError: not even ten steps fit.
    """
    epochs = value_of(choices, "training.num_train_epochs")
    whole = run_seconds(facts, choices, seconds_per_step)
    if whole <= seconds:
        return choices
    rows = trained_rows(facts, value_of(choices, "data.validation"))
    what = "blocks" if facts.kind == "text" else "rows"
    wanted = f"{epochs} epoch{'s' if epochs > 1 else ''} of {rows:,} {what} would take {minutes_of(whole)}"
    for fewer in range(epochs - 1, 0, -1):
        less = _again(facts, changed(choices, Choice("training.num_train_epochs", fewer, f"the budget's: {wanted}")))
        if run_seconds(facts, less, seconds_per_step) <= seconds:
            return less
    once = _again(
        facts, changed(choices, *_held_less(facts, choices), Choice("training.num_train_epochs", 1, "the budget's"))
    )
    rows, batch = trained_rows(facts, value_of(once, "data.validation")), rows_of_a_step(once)
    epoch_seconds = run_seconds(facts, once, seconds_per_step)
    evaluating = epoch_seconds - total_steps(facts, once) * seconds_per_step
    if facts.kind == "text":  # the held-out texts stay as many
        steps = int((seconds - evaluating) / seconds_per_step)
        needed = LEAST_STEPS * seconds_per_step + evaluating
    else:
        steps = int(max(0.0, seconds) / epoch_seconds * rows / batch)
        needed = LEAST_STEPS * epoch_seconds * batch / rows
    if steps < LEAST_STEPS:
        raise UserError(
            f"the budget leaves {minutes_of(max(0.0, seconds))} for training: {max(0, steps)} steps of {batch} rows, too few to learn from.",
            f"Give it {math.ceil((needed - seconds) / 60)} more minutes, or take a smaller model.",
        )
    if facts.kind == "text":
        return _again(facts, changed(once, Choice("training.max_steps", steps, f"for the budget: {wanted}")))
    sample = {"path": value_of(choices, "data.train"), "max_samples": steps * batch * facts.rows // rows}
    return _again(facts, changed(once, Choice("data.train", sample, f"a random sample for the budget: {wanted}")))


def _held_less(facts: Facts, choices: tuple[Choice, ...]) -> list[Choice]:
    """What of the held-out rows is left where only a part of an epoch is trained."""
    held_out = value_of(choices, "data.validation", 0)
    if facts.kind == "text" and all_rows(facts) - trained_rows(facts, held_out) > 20:
        return [Choice("data.validation", 20, "a few texts are held out: scoring them takes from the budget")]
    if facts.kind != "text" and held_out >= 1:
        return [Choice("data.validation", 0.1, "a tenth of the sample is held out")]
    return []


def minutes_of(seconds: float) -> str:
    """For people: whole minutes, or seconds below one and a half."""
    return f"about {seconds:.0f} seconds" if seconds < 90 else f"about {seconds / 60:.0f} minutes"


def _again(facts: Facts, choices: tuple[Choice, ...]) -> tuple[Choice, ...]:
    """What depends on the number of steps and epochs."""
    steps = total_steps(facts, choices)
    often = Choice("training.logging_steps", max(1, steps // 40), "about 40 points of the loss curve")
    if value_of(choices, "training.num_train_epochs") > 1 or value_of(choices, "training.eval_strategy") is None:
        return changed(choices, often)
    return changed(
        choices,
        often,
        Choice("training.eval_strategy", "steps", "the held-out rows show how it goes"),
        Choice("training.eval_steps", 0.25, "four times in the only epoch"),
        Choice("training.save_strategy", "steps", "so that any evaluated moment can be gone back to"),
        Choice("training.save_steps", 0.25, "as often"),
    )
