"""Linear maps of one input, each with an optional low-rank update, and their forward and backward products.

    y = x W^T + b + s (x A^T) B^T        (Hu et al. 2021, https://arxiv.org/abs/2106.09685, equation 3)

Module by module this makes six tensors of the size of y in forward and backward; here the update is added to the
product in place (`addmm_`), and its gradient to that of x. Maps of the same input (queries, keys and values; gate and up)
read it once for all their factors A, which lie one under the other.

Everything is multiplied in the precision of x, which is autocast's where that is on (`product_dtype`): weights and factors
of another are cast for each product, in backward again, where autocast would keep the copies till then.

Shapes: T tokens, I input width, O output width, R rank (S, of all maps together).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from luthier.scoring.fused.casting import cast_for_product
from luthier.scoring.fused.packed import PackedWeight, packed_weight

Factors = tuple[Tensor | None, Tensor | None]
_LORA_LAYERS = (("peft.tuners.lora.layer", "Linear"), ("peft.tuners.lora.bnb", "Linear4bit"))


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

    def weight_OI(self, dtype: torch.dtype) -> Tensor:
        """The whole weight, in the precision of the product that it is asked for."""
        return cast_for_product(self.weight if isinstance(self.weight, Tensor) else self.weight.unpacked(), dtype)

    @property
    def rank(self) -> int:
        """Of the update; 0: there is none."""
        return 0 if self.down_RI is None else self.down_RI.shape[0]


@dataclass(frozen=True, slots=True)
class LowRankMaps:
    """Maps of the same input."""

    maps: Sequence[LowRank]

    @property
    def tensors(self) -> list[Tensor | None]:
        """What an autograd function takes as arguments, four of each map; None in the place of a packed weight."""
        return [
            tensor
            for part in self.maps
            for tensor in (
                part.weight if isinstance(part.weight, Tensor) else None, part.bias_O, part.down_RI, part.up_OR
            )
        ]  # fmt: skip

    @property
    def constants(self) -> list[tuple[PackedWeight | None, float]]:
        """The rest of each map: its weight where that is no tensor, and its scaling."""
        return [(None if isinstance(part.weight, Tensor) else part.weight, part.scaling) for part in self.maps]

    @classmethod
    def of(
        cls, tensors: Sequence[Tensor | None], constants: Sequence[tuple[PackedWeight | None, float]]
    ) -> LowRankMaps:
        """The maps again, from both."""
        maps = []
        for number, (packed, scaling) in enumerate(constants):
            weight, bias_O, down_RI, up_OR = tensors[4 * number : 4 * number + 4]
            found = weight if packed is None else packed
            assert found is not None
            maps.append(LowRank(found, bias_O, down_RI, up_OR, scaling))
        return cls(maps)

    def forward(self, x_TI: Tensor) -> tuple[list[Tensor], Tensor | None]:
        """y [T, O] of each map, and x A^T [T, S], which backward needs."""
        dtype = x_TI.dtype
        outputs = [
            F.linear(x_TI, part.weight_OI(dtype), None if part.bias_O is None else part.bias_O.to(dtype))
            for part in self.maps
        ]
        down_SI = self._down(dtype)
        if down_SI is None:
            return outputs, None
        low_TS = x_TI @ down_SI.t()
        for part, y_TO, low_TR in zip(self.maps, outputs, self._of_each(low_TS), strict=True):
            if part.up_OR is not None:
                y_TO.addmm_(low_TR, part.up_OR.to(dtype).t(), alpha=part.scaling)
        return outputs, low_TS

    def low_gradient(self, gradients: Sequence[Tensor]) -> Tensor | None:
        """The gradient of x A^T, [T, S]."""
        found = [
            (gradient_TO @ part.up_OR.to(gradient_TO.dtype)).mul_(part.scaling)
            for part, gradient_TO in zip(self.maps, gradients, strict=True)
            if part.up_OR is not None
        ]
        return torch.cat(found, dim=1) if len(found) > 1 else found[0] if found else None

    def factor_gradients(
        self, gradients: Sequence[Tensor], low_gradient_TS: Tensor | None, low_TS: Tensor | None, x_TI: Tensor | None
    ) -> list[Factors]:
        """Gradients of both factors of each map."""
        if low_gradient_TS is None or low_TS is None or x_TI is None:
            return [(None, None) for _ in self.maps]
        down_SI = low_gradient_TS.t() @ x_TI
        found: list[Factors] = []
        for part, gradient_TO, low_TR, down_RI in zip(
            self.maps, gradients, self._of_each(low_TS), self._of_each(down_SI, dim=0), strict=True
        ):
            # R x O and turned: MKL makes O x R two and a half times slower
            up_OR = (low_TR.t() @ gradient_TO).mul_(part.scaling).t() if part.rank else None
            found.append((down_RI if part.rank else None, up_OR))
        return found

    def input_gradient(self, gradients: Sequence[Tensor], low_gradient_TS: Tensor | None) -> Tensor:
        """The gradient of x, [T, I]."""
        dtype = gradients[0].dtype
        into_TI = gradients[0] @ self.maps[0].weight_OI(dtype)
        for part, gradient_TO in zip(self.maps[1:], gradients[1:], strict=True):
            into_TI.addmm_(gradient_TO, part.weight_OI(dtype))
        down_SI = self._down(dtype)
        if low_gradient_TS is not None and down_SI is not None:
            into_TI.addmm_(low_gradient_TS, down_SI)
        return into_TI

    def _down(self, dtype: torch.dtype) -> Tensor | None:
        """All factors A, one under the other [S, I]."""
        found = [part.down_RI.to(dtype) for part in self.maps if part.down_RI is not None]
        return torch.cat(found) if len(found) > 1 else found[0] if found else None

    def _of_each(self, together: Tensor, dim: int = 1) -> tuple[Tensor, ...]:
        parts: tuple[Tensor, ...] = together.split([part.rank for part in self.maps], dim=dim)
        return parts


class LowRankLinears(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T of maps of one input, for frozen W and b: `LowRankMaps.constants`, then `tensors`."""

    @staticmethod
    def forward(
        ctx: Any, x_TI: Tensor, constants: Sequence[tuple[PackedWeight | None, float]], *tensors: Tensor | None
    ) -> tuple[Tensor, ...]:
        outputs, low_TS = LowRankMaps.of(tensors, constants).forward(x_TI)
        ctx.save_for_backward(x_TI, low_TS, *tensors)
        ctx.constants = constants
        return tuple(outputs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TI, low_TS, *tensors = ctx.saved_tensors
        maps = LowRankMaps.of(tensors, ctx.constants)
        low_gradient_TS = maps.low_gradient(gradients)
        factors = maps.factor_gradients(gradients, low_gradient_TS, low_TS, x_TI)
        into_TI = maps.input_gradient(gradients, low_gradient_TS) if ctx.needs_input_grad[0] else None
        return into_TI, None, *in_place(factors)


def in_place(factors: Sequence[Factors]) -> list[Tensor | None]:
    """Gradients in the order of `LowRankMaps.tensors`."""
    return [gradient for down, up in factors for gradient in (None, None, down, up)]


def frozen_weight(module: nn.Module, x: Tensor) -> Tensor | PackedWeight | None:
    """The weight of a frozen linear layer that multiplies x in the precision of its products: exactly `nn.Linear`, or one
    in 4 bits, to whose calls nothing listens. None where the layer is another, or its weight is more than a tensor."""
    layer: Any = module
    if (
        has_hooks(module)
        or is_wrapped(getattr(layer, "weight", None))
        or (getattr(layer, "bias", None) is not None and layer.bias.requires_grad)
    ):
        return None
    if type(module) is nn.Linear:
        fits = is_autocast(x) or module.weight.dtype == x.dtype
        return module.weight if fits and not module.weight.requires_grad else None
    return packed_weight(module, product_dtype(x))


def is_wrapped(weight: Tensor | None) -> bool:
    """Whether a weight is a tensor in name only: torchao's stand for numbers in 8 bits and know no products but their own."""
    return weight is not None and is_traceable_wrapper_subclass(weight)


def has_hooks(module: nn.Module) -> bool:
    """Whether something listens to a module's forward or backward, or stands in for it (accelerate's offloading)."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or hasattr(module, "_hf_hook")
    )


def low_rank(module: nn.Module, x: Tensor) -> LowRank | None:
    """A module as the map that the fused functions compute, or None where it is anything else at this moment.

    A frozen `nn.Linear` or one in 4 bits, or peft's LoRA layer over one: one active adapter, not disabled, not merged, no
    variant (DoRA and others), no bias of its own, dropout that does nothing, no hooks; all of one precision, but that factors
    may be float32 under autocast and where x is bfloat16 (of float16, whose small gradients vanish, only autocast's loss is
    scaled).
    """
    layer: Any = module
    weight = frozen_weight(layer, x)
    if weight is not None:
        return LowRank(weight, layer.bias, None, None, 0.0)
    if not is_lora_linear(layer) or layer.disable_adapters or layer.merged or has_hooks(layer):
        return None
    base = layer.base_layer
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    weight = frozen_weight(base, x)
    if len(active) != 1 or weight is None:
        return None
    name = active[0]
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if name in layer.lora_variant or up.bias is not None or type(up) is not nn.Linear or type(down) is not nn.Linear:
        return None
    if _drops(dropout) or any(has_hooks(part) for part in (down, up, dropout)):
        return None
    dtype = product_dtype(x)
    allowed = {dtype, torch.float32} if is_autocast(x) or dtype == torch.bfloat16 else {dtype}
    if not {down.weight.dtype, up.weight.dtype} <= allowed:
        return None
    return LowRank(weight, base.bias, down.weight, up.weight, layer.scaling[name])


def _drops(dropout: nn.Module) -> bool:
    return not isinstance(dropout, nn.Identity) and dropout.training and getattr(dropout, "p", 1.0) > 0


def is_lora_linear(module: nn.Module) -> bool:
    """Whether it is peft's LoRA layer over a linear one."""
    return (type(module).__module__, type(module).__name__) in _LORA_LAYERS


def is_autocast(x: Tensor) -> bool:
    """Whether products of a tensor are in the precision of autocast, which leaves float64 alone."""
    return torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64


def product_dtype(x: Tensor) -> torch.dtype:
    """The precision in which x is multiplied with weights."""
    return torch.get_autocast_dtype(x.device.type) if is_autocast(x) else x.dtype
