"""Adafactor: the second moment kept as sums of its rows and columns (Shazeer and Stern 2018,
https://arxiv.org/abs/1804.04235, algorithm 4), by transformers.

    R <- b R + (1 - b) rowmeans(g^2),  C <- b C + (1 - b) columnmeans(g^2),  b = 1 - t^decay_rate
    U = g / sqrt(R C / mean(R)),  D = U / max(1, RMS(U) / clip_threshold)

Its state is a row and a column of each matrix. The rate is training's, with its schedule: the paper's own (relative
steps) is not offered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from luthier.config.sections import OptimizerOptions
from luthier.training.trained import TrainedParameter

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(OptimizerOptions):
    """Adafactor's settings, named as in transformers' Adafactor."""

    name: str = "adafactor"
    decay_rate: float = Field(-0.8, lt=0, description="Exponent of the second moment's decay: 1 - step^decay_rate.")
    clip_threshold: float = Field(1.0, gt=0, description="An update's root mean square is scaled down to this.")
    beta1: float | None = Field(
        None, ge=0, lt=1, description="Decay of a first moment, which costs a number for each weight; unset: none."
    )
    scale_parameter: bool = Field(
        False,
        description="Multiply the rate by the weights' root mean square; it is then given far larger (1e-3 for full).",
    )

    transformers_name = "adafactor"

    @property
    def learning_rate_ratio(self) -> float:
        # T5 was fine-tuned so, at 1e-3 (Raffel et al. 2020, https://arxiv.org/abs/1910.10683, section 3.1.2); full's is 2e-5
        return 50.0 if self.scale_parameter else 1.0


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """A row and a column of each matrix, vectors whole; float32 even under pure_bf16, but for the mean."""
    count = 0
    for parameter in parameters:
        factored = len(parameter.shape) >= 2
        *above, rows, columns = parameter.shape if factored else (0, 0)
        count += 4 * (math.prod(above) * (rows + columns) if factored else parameter.count)
        count += 4 * parameter.count if options.beta1 is not None else 0
    return count


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """g^2 and what is made of it, of one parameter after the other, in float32; 16-bit gradients and weights in float32 too."""
    found = ([4 * p.count] * (2 if p.number_bytes == 4 else 4) for p in parameters)
    return max(found, key=sum, default=[])


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """transformers' Adafactor, its rate given from outside."""
    from transformers.optimization import Adafactor

    options = cast(Options, training.optim)
    optimizer: Optimizer = Adafactor(
        groups,
        lr=learning_rate,
        decay_rate=options.decay_rate,
        clip_threshold=options.clip_threshold,
        beta1=options.beta1,
        scale_parameter=options.scale_parameter,
        relative_step=False,
        warmup_init=False,
    )
    return optimizer
