"""Lion: the sign of a momentum (Chen et al. 2023, https://arxiv.org/abs/2302.06675, algorithm 2).

    D = sign(beta1 m + (1 - beta1) g),   then   m <- beta2 m + (1 - beta2) g

Every weight moves by the whole learning rate in every step, so the rate must be smaller than AdamW's (the paper: three to
ten times), and the weight decay as many times larger. By default it is a third: in short runs that is still slower than AdamW
(docs/optimizers.md). It keeps half of what AdamW keeps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field

from luthier.config.sections import OptimizerOptions
from luthier.training.trained import TrainedParameter, total_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(OptimizerOptions):
    """Lion has decays of its own; weight_decay is training's."""

    name: str = "lion"
    beta1: float = Field(0.9, ge=0, lt=1, description="Weight of the momentum in the direction.")
    beta2: float = Field(0.99, ge=0, lt=1, description="Decay of the momentum.")

    transformers_name = "lion_32bit"

    @property
    def learning_rate_ratio(self) -> float:
        return 1 / 3


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """The momentum."""
    return total_bytes(parameters)


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """The signs of one parameter after the other."""
    return [max((parameter.bytes for parameter in parameters), default=0)]


def direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The signs, and the momentum's step."""
    if "exp_avg" not in state:
        state["exp_avg"] = gradient.new_zeros(gradient.shape)
    signs: Tensor = state["exp_avg"].lerp(gradient, 1 - group["beta1"]).sign_()
    state["exp_avg"].lerp_(gradient, 1 - group["beta2"])
    return signs


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """Lion over all groups."""
    from luthier.training.optimizers._rules import PerParameter

    options = cast(Options, training.optim)
    return PerParameter(groups, learning_rate, direction, beta1=options.beta1, beta2=options.beta2)
