"""Stand-ins for quantized layers, so that a base in 4 or 8 bits can be traced where bitsandbytes is not installed.

A stand-in holds as many bytes as the real layer and, like it, makes the whole weight in the precision of the products
for each of forward and backward, keeping of it only the packed one. Where bitsandbytes is there, its own operation
unpacks 4 bits, so that its time can be measured.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from luthier.config.model_section import QuantizationConfig
from luthier.foundation.errors import ModelError
from luthier.model.quantization import BLOCK, odd_layers, odd_widths_are_wrong, quantized_layers, weight_bytes


class _Product(torch.autograd.Function):
    """x W^T with a W that is unpacked when it is needed."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: QuantizedStandIn) -> Tensor:
        ctx.layer, ctx.dtype = layer, x.dtype
        if layer.keeps_input:
            ctx.save_for_backward(x)
        weight_OI = layer.unpacked()
        return (x.to(weight_OI.dtype) @ weight_OI.t()).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        weight_OI = ctx.layer.unpacked()
        return (gradient.to(weight_OI.dtype) @ weight_OI).to(ctx.dtype), None


class QuantizedStandIn(nn.Module):
    """A linear layer [out, in] whose weight is quantized.

    Args:
        dtype: of the products.
    """

    def __init__(self, shape: tuple[int, int], bias: nn.Parameter | None, how: QuantizationConfig, dtype: torch.dtype):
        super().__init__()
        self.out_features, self.in_features = shape
        self.how, self.dtype = how, dtype
        self.keeps_input = how.bits == 8  # bitsandbytes' 8-bit product saves its input, its 4-bit one does not
        self.bias = bias
        packed = -(-shape[0] * shape[1] * (how.bits or 4) // 8)
        scales = max(0, weight_bytes(shape, how) - packed)
        self.register_buffer("packed", torch.empty(packed, 1, dtype=torch.uint8, device="meta"))
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        """The product, [..., out]."""
        y: Tensor = _Product.apply(x, self)  # type: ignore[no-untyped-call]
        return y if self.bias is None else y + self.bias.to(y.dtype)

    def unpacked(self) -> Tensor:
        """The whole weight, [out, in]."""
        shape = (self.out_features, self.in_features)
        packed: Any = self.packed
        if self.how.bits == 8:
            return packed.view(shape).to(self.dtype)  # type: ignore[no-any-return]
        if not _has_bitsandbytes():
            return packed.new_empty(shape, dtype=self.dtype)  # type: ignore[no-any-return]
        import bitsandbytes  # noqa: F401 - registers its operations with torch

        absmax = packed.new_empty(-(-shape[0] * shape[1] // BLOCK), dtype=torch.float32)
        unpack = torch.ops.bitsandbytes.dequantize_4bit.default
        weight: Tensor = unpack(packed, absmax, BLOCK, self.how.type, shape, self.dtype)
        return weight


def quantizable(model: PreTrainedModel, how: QuantizationConfig, device: str) -> list[nn.Module]:
    """The layers of a skeleton that a quantized base has in few bits on a kind of device.

    Raises:
        ModelError: none of them can be.
    """
    names = set(quantized_layers(model))
    if how.bits != 8 and device == "cpu" and _has_bitsandbytes() and odd_widths_are_wrong(device):
        names -= set(odd_layers(model))
    if not names:
        raise ModelError(f"no layer of {type(model).__name__} can be quantized ({how}) on this {device}.")
    return [model.get_submodule(name) for name in names]


def _has_bitsandbytes() -> bool:
    return importlib.util.find_spec("bitsandbytes") is not None


def quantize(tuned: nn.Module, layers: list[nn.Module], how: QuantizationConfig, dtype: torch.dtype) -> None:
    """Put stand-ins in the place of layers, wherever a method has moved them to.

    Args:
        layers: as `quantizable` gave them before the method was applied.
    """
    wanted = {id(layer) for layer in layers}
    for module in list(tuned.modules()):
        for name, child in list(module.named_children()):
            if id(child) in wanted:
                layer: Any = child
                shape = tuple(layer.weight.shape)
                shape = (shape[1], shape[0]) if isinstance(layer, Conv1D) else shape
                setattr(module, name, QuantizedStandIn(shape, layer.bias, how, dtype))
