"""AdamW: Adam with decoupled weight decay (Loshchilov and Hutter 2019, https://arxiv.org/abs/1711.05101), by torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions
from luthier.training.trained import TrainedParameter, total_bytes

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(OptimizerOptions):
    """AdamW's settings are training.adam_beta1, adam_beta2, adam_epsilon and weight_decay."""

    name: str = "adamw"

    reads: ClassVar[frozenset[str]] = OPTIMIZER_SETTINGS
    transformers_name: ClassVar[str | None] = "adamw_torch_fused"


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """Two moments."""
    return 2 * total_bytes(parameters)


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """torch's fused AdamW over parameter groups that carry their own weight_decay."""
    from torch.optim import AdamW

    return AdamW(
        groups,
        lr=learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        fused=True,
    )
