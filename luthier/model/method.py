"""What every training method is: a way to mark or add trainable weights, and a folder format for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from luthier.model.quiet import quiet_bars

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

    from luthier.config.sections import MethodOptions


@dataclass(frozen=True, slots=True)
class Apply:
    """What a method is told besides its own options.

    Args:
        seed: torch's seed immediately before new weights are made, so that they equal peft's own.
        new_token_ids: embedding rows that were added for this run and must be trained.
        base_name: what an adapter names as its base: a hub id, or the folder's path.
        revision: the base's revision on its hub.
        pure_bf16: keep trainable weights in bfloat16.
    """

    seed: int
    new_token_ids: Sequence[int] = ()
    base_name: str = ""
    revision: str | None = None
    pure_bf16: bool = False


class Method(Protocol):
    """A training method.

    `saves` says what its folder holds: "model" (all weights, loads in plain transformers) or "adapter" (peft's format,
    loads on top of the base).
    """

    options: MethodOptions
    saves: Literal["model", "adapter"]

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Mark or add what is trained; returns the model to train. Raises ModelError for names that match nothing."""
        ...

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the trained weights into an existing folder; safetensors and JSON only."""
        ...

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the weights that `save` wrote back into a model that `apply` made, to the same bits."""
        ...


@dataclass(frozen=True, slots=True)
class ParameterCount:
    """Trainable and all parameters; a tied weight counts once."""

    trainable: int
    total: int

    @property
    def share(self) -> float:
        """Trainable share, 0 to 1."""
        return self.trainable / self.total if self.total else 0.0

    def __str__(self) -> str:
        return f"{self.trainable:,} of {self.total:,} parameters are trained ({self.share:.2%})"


def count_parameters(model: nn.Module) -> ParameterCount:
    """Count a model's parameters."""
    counts = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return ParameterCount(sum(n for n, trained in counts if trained), sum(n for n, _ in counts))


def trainable_to_float32(model: nn.Module, pure_bf16: bool) -> None:
    """Trainable weights in float32 (small updates vanish in 16 bits), or all of them in bfloat16 on request."""
    import torch

    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.to(torch.bfloat16 if pure_bf16 else torch.float32)


def save_whole_model(model: Any, folder: Path) -> None:
    """Write a transformers model as safetensors shards of at most 5 GB."""
    with quiet_bars():
        model.save_pretrained(folder, max_shard_size="5GB")


def load_whole_model(model: Any, folder: Path) -> None:
    """Put a saved model's weights into one that is already there; each keeps its own precision."""
    import torch

    # by way of transformers' own loading, since some families rename weights between memory and disk; float32 holds
    # the 16-bit ones exactly
    with quiet_bars():
        saved = type(model).from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(saved.state_dict())
