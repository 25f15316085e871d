"""What is trained, as far as an optimizer's memory depends on it; imports no torch, so that a plan can be made without.

An optimizer's file says with `state_bytes(options, parameters)` how much it keeps for a list of these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from luthier.config.plugins import OPTIMIZERS
from luthier.config.sections import OptimizerOptions

if TYPE_CHECKING:
    from luthier.config.training_section import TrainingConfig

# matrix: a weight of a hidden layer, of two dimensions or more (experts are stacked); embedding: a row for each token,
# at the input or in the head, an adapter's factors there, and a head over classes; vector: norms, biases and whatever else
# has one dimension, which never decays
Role = Literal["matrix", "embedding", "vector"]


@dataclass(frozen=True, slots=True)
class TrainedParameter:
    """A trained parameter without its values.

    Args:
        name: dotted, as in the model.
        number_bytes: of one of its numbers: 4, or 2 under training.pure_bf16.
    """

    name: str
    shape: tuple[int, ...]
    role: Role
    number_bytes: int = 4

    @property
    def count(self) -> int:
        """How many numbers it has."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Of its values, and of its gradient."""
        return self.count * self.number_bytes


def total_bytes(parameters: Iterable[TrainedParameter]) -> int:
    """Of the values of all: what an optimizer keeps that has one number for each of the parameters'."""
    return sum(parameter.bytes for parameter in parameters)


def check_fit(optim: OptimizerOptions, parameters: Sequence[TrainedParameter]) -> None:
    """Whether what is trained is what an optimizer is for.

    Raises:
        TrainingError: nothing of it is.
    """
    check = getattr(OPTIMIZERS.load(optim.name), "check", None)
    if check is not None:
        check(optim, parameters)


def state_bytes(optim: OptimizerOptions, parameters: Sequence[TrainedParameter]) -> int:
    """What an optimizer keeps in memory at its most, beside weights and gradients, on one device that holds it all.

    One from outside that does not say is taken to keep two numbers for each of the parameters', as AdamW does.
    """
    own = getattr(OPTIMIZERS.load(optim.name), "state_bytes", None)
    return int(own(optim, parameters)) if own is not None else 2 * total_bytes(parameters)


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """Bytes of each of the tensors that an optimizer works with at one moment of an update, at its most, beside weights,
    gradients and `state_bytes`: none, unless its file has an `update_tensors` that says more.

    Args:
        device: cpu or cuda, whose kernels may work in place, or on all parameters at once.
    """
    own = getattr(OPTIMIZERS.load(training.optim.name), "update_tensors", None)
    return list(own(training, parameters, device)) if own is not None else []


def gradient_bytes(optim: OptimizerOptions, parameters: Sequence[TrainedParameter]) -> int:
    """What the gradients take at their most: all of them, unless the optimizer's file has a `gradient_bytes` that says
    less, because it trains a part at a time."""
    own = getattr(OPTIMIZERS.load(optim.name), "gradient_bytes", None)
    return int(own(optim, parameters)) if own is not None else total_bytes(parameters)
