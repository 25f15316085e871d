"""Bottleneck adapters: small two-layer networks hung onto a model's attention and feed-forward modules.

They are submodules with a forward hook, so the model keeps its class, and the names of its own weights.

Shapes: H hidden width, W bottleneck's width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from transformers.activations import ACT2FN

NAME = "bottleneck"  # of the submodule


class Bottleneck(nn.Module):
    """scale * up(activation(down(x))), in its own precision; zero at the start, since `up` is.

    Args:
        hidden: H. width: W.
        parallel: reads what goes into the module it hangs on, not what comes out.
    """

    def __init__(self, hidden: int, width: int, activation: str, scale: float, parallel: bool) -> None:
        super().__init__()
        self.down = nn.Linear(hidden, width)
        self.activation = ACT2FN[activation]
        self.up = nn.Linear(width, hidden)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)
        self.scale, self.parallel, self.active = scale, parallel, True

    def forward(self, hidden_BLH: Tensor) -> Tensor:
        """What is added to the module's output, [B, L, H]."""
        own = hidden_BLH.to(self.down.weight.dtype)
        added: Tensor = self.scale * self.up(self.activation(self.down(own)))
        return added.to(hidden_BLH.dtype)


def hang_on(module: nn.Module, bottleneck: Bottleneck) -> None:
    """Let a module's output pass through a bottleneck."""
    module.add_module(NAME, bottleneck)
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
