"""What is changed of a chosen config so that the run fits into memory."""

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
    changed,
    chosen_method,
    value_of,
)

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
