"""SGD with momentum (Sutskever et al. 2013, https://proceedings.mlr.press/v28/sutskever13.html), by torch.

Nothing adapts the step to a weight's own gradients, so the rate is far above AdamW's, depends on the model, and a
transformer learns slowly: for comparison, and where even one number for each weight is too much (momentum: 0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic import Field, model_validator

from luthier.config.sections import OptimizerOptions
from luthier.training.trained import TrainedParameter, total_bytes

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(OptimizerOptions):
    """SGD's settings; training.weight_decay is added to the gradient here (an L2 penalty), as torch does it."""

    name: str = "sgd"
    momentum: float = Field(0.9, ge=0, lt=1, description="Decay of the sum of past gradients; 0 keeps no state.")
    nesterov: bool = Field(False, description="Look ahead along the momentum; needs one.")

    transformers_name = "sgd"

    @model_validator(mode="after")
    def _momentum_to_look_along(self) -> Options:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov has no effect with momentum 0: give a momentum, or set nesterov to false")
        return self

    @property
    def learning_rate_ratio(self) -> float:
        return 300.0


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """The momentum, where there is one."""
    return total_bytes(parameters) if options.momentum else 0


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """Gradients with the decay, and looked ahead of: of one parameter after the other; CUDA's, those with a decay at once."""
    decaying = [p.bytes for p in parameters if training.weight_decay and p.role != "vector"]
    if device == "cuda":
        return decaying
    ahead = [p.bytes for p in parameters] if cast(Options, training.optim).nesterov else []
    return [max(sizes) for sizes in (decaying, ahead) if sizes]


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """torch's SGD; not its fused one, which on a CPU makes no step with a momentum in bfloat16 (torch 2.13)."""
    from torch.optim import SGD

    options = cast(Options, training.optim)
    return SGD(groups, lr=learning_rate, momentum=options.momentum, nesterov=options.nesterov)
