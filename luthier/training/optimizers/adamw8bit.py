"""AdamW whose two moments are kept in 8 bits, in blocks of 256 with a scale each (Dettmers et al. 2022,
https://arxiv.org/abs/2110.02861), by bitsandbytes, on GPUs and CPUs (there its step is some fifteen times AdamW's).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions
from luthier.foundation.devices import choose_device
from luthier.foundation.errors import TrainingError, import_extra
from luthier.training.trained import TrainedParameter

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig

BLOCK = 256  # numbers that share a scale
MAP_BYTES = 2 * 256 * 4  # what the 256 values of each moment stand for


class Options(OptimizerOptions):
    """AdamW's own settings are training.adam_beta1, adam_beta2, adam_epsilon and weight_decay."""

    name: str = "adamw8bit"
    min_8bit_size: int = Field(4096, ge=1, description="Parameters of fewer numbers keep float32 moments.")
    paged: bool = Field(False, description="Let CUDA move the moments to the CPU's memory when the GPU's runs out.")

    reads: ClassVar[frozenset[str]] = OPTIMIZER_SETTINGS
    package: ClassVar[str | None] = "bitsandbytes"

    @property
    def transformers_name(self) -> str:  # type: ignore[override]
        return "paged_adamw_8bit" if self.paged else "adamw_bnb_8bit"


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """Two bytes for each number and 8 for each block; small parameters as AdamW, in float32."""
    count = 0
    for parameter in parameters:
        small = parameter.count < options.min_8bit_size
        count += 8 * parameter.count if small else 2 * parameter.count + 8 * -(-parameter.count // BLOCK)
    return count + MAP_BYTES * any(parameter.count >= options.min_8bit_size for parameter in parameters)


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """On a CPU both moments, the gradient and two steps of the denominator of one parameter after the other, in float32;
    16-bit weights too. CUDA's kernel takes nothing."""
    least = cast(Options, training.optim).min_8bit_size
    found = ([4 * p.count] * (5 if p.number_bytes == 4 else 6) for p in parameters if p.count >= least)
    return [] if device == "cuda" else max(found, key=sum, default=[])


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """bitsandbytes' AdamW8bit.

    Raises:
        MissingExtraError: bitsandbytes is absent. TrainingError: paging is asked for without CUDA.
    """
    # on a CPU with bfloat16 units it warns that it has no kernel from a hub for a product that is not used here
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    bitsandbytes = import_extra("bitsandbytes", extra="optimizers", purpose="training.optim: adamw8bit")
    options = cast(Options, training.optim)
    if options.paged and choose_device(training.use_cpu).type != "cuda":
        raise TrainingError(
            "training.optim.paged has no effect here: only CUDA pages, and this run has no CUDA device.",
            "Set it to false; the moments are in the CPU's memory anyway.",
        )
    optimizer: Optimizer = bitsandbytes.optim.AdamW8bit(
        groups,
        lr=learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        min_8bit_size=options.min_8bit_size,
        is_paged=options.paged,
    )
    return optimizer
