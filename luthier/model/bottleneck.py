"""Bottleneck adapters: small two-layer networks hung onto a model's attention, feed-forward and linear modules.

They are submodules with a forward hook, so the model keeps its class, and the names of its own weights.

Shapes: I width that is read, O width that is written, W bottleneck's width, L layers, P virtual tokens.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN

NAME = "bottleneck"  # of the submodule


class Bottleneck(nn.Module):
    """gate(x) * scale * up(activation(down(x))), in its own precision; zero at the start, since `up` is.

    Args:
        inputs: I. width: W. outputs: O.
        parallel: reads what goes into the module it hangs on, not what comes out.
        bias: of both linear maps.
        gated: a gate between 0 and 1 is learnt with it, sigmoid(w x + b), one for every token; a half at the start.
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int,
        activation: str,
        scale: float,
        parallel: bool,
        bias: bool = True,
        gated: bool = False,
    ) -> None:
        super().__init__()
        self.down = nn.Linear(inputs, width, bias=bias)
        self.activation = ACT2FN[activation]
        self.up = nn.Linear(width, outputs, bias=bias)
        self.gate = nn.Linear(inputs, 1) if gated else None
        for closed in (self.up, self.gate):
            for parameter in closed.parameters() if closed is not None else ():
                nn.init.zeros_(parameter)
        self.scale, self.parallel, self.active = scale, parallel, True

    def forward(self, read_BLI: Tensor) -> Tensor:
        """What is added to the module's output, [B, L, O]."""
        own = read_BLI.to(self.down.weight.dtype)
        added: Tensor = self.scale * self.up(self.activation(self.down(own)))
        if self.gate is not None:
            added = torch.sigmoid(self.gate(own)) * added
        return added.to(read_BLI.dtype)


class GatedPrefix(nn.Module):
    """A prefix encoder of peft's whose keys and values are multiplied by a learnt gate, one for every layer.

    Args:
        encoder: gives [B, P, L * 2 * width], layer by layer.
        layers: L.
    """

    def __init__(self, encoder: nn.Module, layers: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.gate_L = nn.Parameter(torch.zeros(layers))  # sigmoid(0): a half

    @property
    def embedding(self) -> nn.Module:
        """Where peft looks for the encoder's device."""
        found: nn.Module = self.encoder.embedding  # type: ignore[assignment]
        return found

    def forward(self, prefix: Tensor) -> Tensor:
        """The gated keys and values, in the encoder's shape."""
        flat: Tensor = self.encoder(prefix)
        return flat * torch.sigmoid(self.gate_L).repeat_interleave(flat.shape[-1] // len(self.gate_L))


def hang_on(module: nn.Module, bottleneck: Bottleneck) -> None:
    """Let a module's output pass through a bottleneck, which is put beside the module's weights."""
    weight = next(module.parameters())
    # quantized weights are whole numbers: beside them it stays as it was made
    module.add_module(NAME, bottleneck.to(weight.device, weight.dtype if weight.is_floating_point() else None))
    module.register_forward_hook(_add, with_kwargs=True)


def _add(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    bottleneck: Any = getattr(module, NAME)
    if not bottleneck.active:
        return None
    hidden = output[0] if isinstance(output, tuple) else output
    read = (arguments[0] if arguments else named["hidden_states"]) if bottleneck.parallel else hidden
    changed = hidden + bottleneck(read)
    return (changed, *output[1:]) if isinstance(output, tuple) else changed


def bottlenecks(model: nn.Module) -> list[Bottleneck]:
    """Those that hang in a model."""
    return [module for module in model.modules() if isinstance(module, Bottleneck)]


@contextmanager
def without_bottlenecks(model: nn.Module) -> Iterator[None]:
    """The model as if nothing hung in it."""
    found = bottlenecks(model)
    for bottleneck in found:
        bottleneck.active = False
    try:
        yield
    finally:
        for bottleneck in found:
            bottleneck.active = True
