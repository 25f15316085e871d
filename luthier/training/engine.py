"""What every engine is: where a step is computed, and how losses and gradients of several ranks meet."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class Engine(Protocol):
    """Devices and precision of a run."""

    device: torch.device
    rank: int
    world_size: int

    def prepare(self, scorer: nn.Module) -> nn.Module:
        """Move the scorer to its device and wrap it if the engine needs to."""
        ...

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision context of a forward pass."""
        ...

    def total(self, value: float) -> float:
        """The sum of a number over all ranks."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients, so that after the last batch of a step they are summed over all ranks."""
        ...

    def clip(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Scale gradients down to `max_norm` (0: leave them); returns their norm before."""
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
