"""What every engine is: where a step is computed, and how losses and gradients of several ranks meet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from luthier.config.plugins import ENGINES
from luthier.config.training_section import TrainingConfig
from luthier.foundation.ranks import ranks

Value = TypeVar("Value")


class Engine(Protocol):
    """Devices, precision and ranks of a run.

    What speaks of several ranks is called by all of them, in the same order; every one gets the same answer.
    """

    device: torch.device
    rank: int
    world_size: int

    def place(self, model: Any) -> Any:
        """Where one device holds the whole model: the model on it. The method has not seen it yet, so that starts which
        decompose weights or look at the run's rows are computed there. Else the model as it is."""
        ...

    def prepare(self, scorer: nn.Module) -> nn.Module:
        """Move the scorer to its device, give it the same weights on every rank, and wrap it if the engine needs to."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision context of a forward pass."""
        ...

    def totals(self, *values: float) -> list[float]:
        """The sum of each number over all ranks."""
        ...

    def largest(self, *flags: int) -> list[int]:
        """The largest of each number over all ranks: what one rank asks for, all do."""
        ...

    def lead(self, work: Callable[[], Value]) -> Value:
        """Let rank 0 do what must be done once, such as writing files; all wait, and get what it gives, which is JSON.

        Raises:
            RankStoppedError: on the other ranks, where the work failed; rank 0 raises what it met.
        """
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to this rank's."""
        ...

    def clip(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Sum the step's gradients over the ranks, and scale them down to `max_norm` (0: leave them); returns their
        norm before."""
        ...

    def step(self, optimizer: Optimizer) -> bool:
        """Update the weights; False if the step was skipped (fp16 overflow)."""
        ...

    def state(self) -> dict[str, Any]:
        """What a resumed run needs besides weights and optimizer; JSON."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Put that back."""
        ...

    def close(self) -> None:
        """Leave the other ranks."""
        ...


def make_engine(training: TrainingConfig, device: torch.device) -> Engine:
    """The config's engine; `auto` is ddp where a launcher started several processes, else single.

    Raises:
        ConfigError: the engine does not fit the way the process was started.
    """
    name = training.engine
    if name == "auto":
        name = "ddp" if ranks().world_size > 1 else "single"
    engine: Engine = ENGINES.load(name).build(training, device)
    return engine
