"""A run's memory and time from a few counts, for models whose step can't be traced, and for the rules' own tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

from luthier.planning.auto import Choice, Facts, Prediction, rows_of_a_step, total_steps, trained_rows, value_of

HEAD_BYTES = 3 * 64 * 1024**2  # logits are made 64 MiB at a time, with their exponentials and gradients beside them
TRIES = 3  # others may hold the processor for a while
EFFICIENCY = 0.5  # of the matrix product's rate, measured on runs of LoRA


def reckon(facts: Facts, choices: tuple[Choice, ...], flops_per_second: Callable[[], float]) -> Prediction:
    """Memory at the peak, beyond what torch and the libraries have taken by then, and time of a step.

    Weights; for each trained one a gradient and AdamW's two numbers; activations of a batch as Korthikanti et al. 2022
    (https://arxiv.org/abs/2205.05198, eq. 2, without the attention matrix, which is never kept) count them: 34 bytes a
    token, layer and unit of width in 16 bits, twice that in float32. With checkpointing a layer's input is kept of
    every layer, and the rest of one.
    """
    model, method = value_of(choices, "model"), value_of(choices, "method")
    quantized = isinstance(model, dict)
    bytes_each = 2 if facts.precision else 4
    trainable = facts.parameters if method == "full" else adapter_parameters(facts, method["rank"])
    weights = facts.parameters * (0.6 if quantized else bytes_each) + 4 * trainable * (
        method != "full" or bytes_each == 2
    )
    tokens = batch_tokens(facts, choices)
    layer = 34 * facts.width * (1 if facts.precision else 2)
    if value_of(choices, "training.gradient_checkpointing"):
        activations = tokens * (bytes_each * facts.width * facts.layers + layer)
    else:
        activations = tokens * layer * facts.layers
    peak = weights + 12 * trainable + activations + HEAD_BYTES
    passes = 3 if value_of(choices, "training.gradient_checkpointing") else 2
    flops = 2 * passes * facts.parameters + 2 * trainable  # of a token
    rows = rows_of_a_step(choices)
    mean = sum(min(length, value_of(choices, "data.cutoff_length")) for length in facts.token_lengths) / len(
        facts.token_lengths
    )
    return Prediction(int(peak), flops * rows * mean / (EFFICIENCY * flops_per_second()))


def adapter_parameters(facts: Facts, rank: int) -> int:
    """Of LoRA on every linear layer: about 16 widths of inputs and outputs a layer."""
    return 16 * rank * facts.width * facts.layers


def batch_tokens(facts: Facts, choices: tuple[Choice, ...]) -> int:
    """Tokens of a large batch: the longest row with others of the longer half."""
    cutoff: int = value_of(choices, "data.cutoff_length")
    batch: int = value_of(choices, "training.per_device_train_batch_size")
    return min(facts.longest, cutoff) + (batch - 1) * min(facts.length_at(0.75), cutoff)


@cache
def measured_rate(device: str, precision: str) -> float:
    """This machine's matrix products, in operations a second: the best of three tries, each a third of a second."""
    import torch

    from luthier.foundation.devices import matmul_gflops

    name = {"bf16": "bfloat16", "fp16": "float16"}.get(precision, "float32")
    return 1e9 * max(matmul_gflops(name, torch.device(device)) for _ in range(TRIES))


def run_seconds(facts: Facts, choices: tuple[Choice, ...], found: Prediction) -> float:
    """Of the whole run; a row that is only scored takes a third of the time of one that is trained on."""
    steps = total_steps(facts, choices)
    held = facts.rows - trained_rows(facts, value_of(choices, "data.validation")) if facts.kind != "text" else 0
    batch = rows_of_a_step(choices)
    evaluations = max(4, math.ceil(value_of(choices, "training.num_train_epochs"))) if held else 0
    worth: float = steps + evaluations * held / batch / 3
    return worth * found.seconds_per_step
