"""A linear map with an optional low-rank update, as plain tensors, and its forward and backward products.

    y = x W^T + b + s (x A^T) B^T        (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3)

Module by module this makes six tensors of the size of y in forward and backward; here the update is added to the
product in place (`addmm_`), and its gradient to that of x.

Shapes: T tokens, I input width, O output width, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luthier.scoring.fused.packed import PackedWeight, packed_weight


@dataclass(frozen=True, slots=True)
class LowRank:
    """The tensors of one map.

    Args:
        weight: of the frozen base, [O, I], or what makes it. bias_O: there may be none.
        down_RI, up_OR: the update's factors (peft: lora_A, lora_B), or None where the map has no update.
        scaling: what the update is multiplied with.
    """

    weight: Tensor | PackedWeight
    bias_O: Tensor | None
    down_RI: Tensor | None
    up_OR: Tensor | None
    scaling: float

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """What an autograd function takes as arguments, in this order; None in the place of a packed weight."""
        return self.weight if isinstance(self.weight, Tensor) else None, self.bias_O, self.down_RI, self.up_OR

    @property
    def packed(self) -> PackedWeight | None:
        """The weight where it is no tensor."""
        return None if isinstance(self.weight, Tensor) else self.weight

    def weight_OI(self) -> Tensor:
        """The whole weight."""
        return self.weight if isinstance(self.weight, Tensor) else self.weight.unpacked()

    def forward(self, x_TI: Tensor) -> tuple[Tensor, Tensor | None]:
        """y [T, O], and x A^T [T, R], which backward needs."""
        y_TO = F.linear(x_TI, self.weight_OI(), self.bias_O)
        if self.down_RI is None or self.up_OR is None:
            return y_TO, None
        low_TR = x_TI @ self.down_RI.t()
        y_TO.addmm_(low_TR, self.up_OR.t(), alpha=self.scaling)
        return y_TO, low_TR

    def low_gradient(self, gradient_TO: Tensor) -> Tensor | None:
        """The gradient of x A^T, [T, R]."""
        return None if self.up_OR is None else (gradient_TO @ self.up_OR).mul_(self.scaling)

    def factor_gradients(
        self, gradient_TO: Tensor, low_gradient_TR: Tensor | None, low_TR: Tensor | None, x_TI: Tensor
    ) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of both factors."""
        if low_gradient_TR is None or low_TR is None:
            return None, None
        # R x O and turned: MKL makes O x R two and a half times slower
        return low_gradient_TR.t() @ x_TI, (low_TR.t() @ gradient_TO).mul_(self.scaling).t()

    def input_gradient(
        self, gradient_TO: Tensor, low_gradient_TR: Tensor | None, into_TI: Tensor | None = None
    ) -> Tensor:
        """The gradient of x, [T, I]; added to `into_TI` in place where that is given."""
        into_TI = gradient_TO @ self.weight_OI() if into_TI is None else into_TI.addmm_(gradient_TO, self.weight_OI())
        if low_gradient_TR is not None:
            assert self.down_RI is not None
            into_TI.addmm_(low_gradient_TR, self.down_RI)
        return into_TI


class LowRankLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T for a frozen W and b."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: Tensor,
        packed: PackedWeight | None,
        weight_OI: Tensor | None,
        bias_O: Tensor | None,
        down_RI: Tensor,
        up_OR: Tensor,
        scaling: float,
    ) -> Tensor:
        part = LowRank(either(weight_OI, packed), bias_O, down_RI, up_OR, scaling)
        y_TO, low_TR = part.forward(x_TI)
        ctx.save_for_backward(x_TI, weight_OI, down_RI, up_OR, low_TR)
        ctx.packed, ctx.scaling = packed, scaling
        return y_TO

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_TO,) = gradients
        x_TI, weight_OI, down_RI, up_OR, low_TR = ctx.saved_tensors
        part = LowRank(either(weight_OI, ctx.packed), None, down_RI, up_OR, ctx.scaling)
        low_gradient_TR = part.low_gradient(gradient_TO)
        down, up = part.factor_gradients(gradient_TO, low_gradient_TR, low_TR, x_TI)
        into_TI = part.input_gradient(gradient_TO, low_gradient_TR) if ctx.needs_input_grad[0] else None
        return into_TI, None, None, None, down, up, None


def either(weight_OI: Tensor | None, packed: PackedWeight | None) -> Tensor | PackedWeight:
    """The one of two that is there."""
    found = weight_OI if packed is None else packed
    assert found is not None
    return found


def frozen_weight(module: nn.Module, dtype: torch.dtype) -> Tensor | PackedWeight | None:
    """The weight of a frozen linear layer in a precision: exactly `nn.Linear`, or one in 4 bits, to whose calls nothing
    listens. None where the layer is another."""
    layer: Any = module
    if has_hooks(module) or (getattr(layer, "bias", None) is not None and layer.bias.requires_grad):
        return None
    if type(module) is nn.Linear:
        return module.weight if module.weight.dtype == dtype and not module.weight.requires_grad else None
    return packed_weight(module, dtype)


def has_hooks(module: nn.Module) -> bool:
    """Whether something listens to a module's forward or backward, or stands in for it (accelerate's offloading)."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "_hf_hook")
    )
