"""One process, one device: a CPU or a GPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from luthier.config.sections import PluginOptions
from luthier.foundation.errors import ConfigError
from luthier.foundation.ranks import ranks

Value = TypeVar("Value")

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(PluginOptions):
    """The single engine has no settings of its own."""

    name: str = "single"


class Single:
    """Computes on one device, with autocast and loss scaling as the config asks."""

    rank = 0
    world_size = 1

    def __init__(self, training: TrainingConfig, device: torch.device) -> None:
        import torch

        self.device = device
        self._dtype = torch.bfloat16 if training.bf16 else torch.float16 if training.fp16 else None
        self._scaler = torch.amp.GradScaler(device.type, enabled=training.fp16)
        if training.fp16:  # it makes its scale at the first loss, which a rank may not have in its first step
            self._scaler.scale(torch.zeros((), device=device))
        if training.tf32 is not None and device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = training.tf32
            torch.backends.cudnn.allow_tf32 = training.tf32

    def place(self, model: Any) -> Any:
        """The model on its GPU; Apple's devices lack the decompositions, so there it waits for `prepare`."""
        return model.to(self.device) if self.device.type == "cuda" and model.device != self.device else model

    def prepare(self, scorer: nn.Module) -> nn.Module:
        """Move the scorer to the device."""
        return scorer.to(self.device)

    def autocast(self) -> AbstractContextManager[Any]:
        """bfloat16 or float16 autocast, or nothing."""
        import torch

        return torch.autocast(self.device.type, dtype=self._dtype) if self._dtype is not None else nullcontext()

    def totals(self, *values: float) -> list[float]:
        """The numbers themselves: there is one rank."""
        return list(values)

    def largest(self, *flags: int) -> list[int]:
        """The flags themselves."""
        return list(flags)

    def lead(self, work: Callable[[], Value]) -> Value:
        """Do the work: this rank is the first."""
        return work()

    def backward(self, loss: Tensor) -> None:
        """Add gradients, scaled where fp16 needs it."""
        self._scaler.scale(loss).backward()

    def clip(self, optimizer: Optimizer, parameters: Sequence[nn.Parameter], max_norm: float) -> float:
        """Sum the gradients over the ranks and scale them down to `max_norm`; returns their norm before."""
        import torch

        self.gather(parameters)
        self._scaler.unscale_(optimizer)  # after the sum: an overflow on one rank is one on all
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if max_norm > 0:
            torch.nn.utils.clip_grads_with_norm_(list(parameters), max_norm, norm)
        return float(norm)

    def gather(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients over all ranks: with one there is nothing to do."""

    def step(self, optimizer: Optimizer) -> bool:
        """Update the weights, unless the scaler found an overflow."""
        if not self._scaler.is_enabled():
            optimizer.step()
            return True
        before = self._scaler.get_scale()
        self._scaler.step(optimizer)
        self._scaler.update()
        return self._scaler.get_scale() >= before

    def state(self) -> dict[str, Any]:
        """The loss scaler's numbers."""
        return {"scaler": self._scaler.state_dict()} if self._scaler.is_enabled() else {}

    def restore(self, state: dict[str, Any]) -> None:
        """Put the loss scaler's numbers back."""
        if "scaler" in state and self._scaler.is_enabled():
            self._scaler.load_state_dict(state["scaler"])

    def close(self) -> None:
        """Nothing to leave."""


def build(training: TrainingConfig, device: torch.device) -> Single:
    """The engine for this process.

    Raises:
        ConfigError: a launcher started several processes, each of which would train a model of its own.
    """
    if ranks().world_size > 1:
        raise ConfigError(
            [
                f"training.engine is single, but {ranks().world_size} processes were started: each would train alone; "
                "use ddp or auto, or start one process"
            ]
        )
    return Single(training, device)
