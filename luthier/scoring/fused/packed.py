"""Frozen weights in 4 bits, made whole for each product and forgotten after it.

Dettmers et al. 2023 (QLoRA, https://arxiv.org/abs/2305.14314, equation 5). bitsandbytes' own function does the same
product by product; known to the fused functions, a base in 4 bits keeps as little for backward as a plain one.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class PackedWeight(Protocol):
    """A weight [O, I] that is not kept whole."""

    def unpacked(self) -> Tensor:
        """The whole weight, made anew, in whatever precision it was packed from."""
        ...


class _FourBits:
    """The weight of one of bitsandbytes' layers."""

    def __init__(self, weight: Any) -> None:
        self._weight = weight

    def unpacked(self) -> Tensor:
        from bitsandbytes.functional import dequantize_4bit

        whole_OI: Tensor = dequantize_4bit(self._weight.data.view(-1, 1), self._weight.quant_state)
        return whole_OI


def packed_weight(module: nn.Module, dtype: torch.dtype) -> PackedWeight | None:
    """The packed weight of a layer whose products are in a precision, or None where the layer is another.

    bitsandbytes' Linear4bit, in the form that trains (on some processors it repacks itself for inference), or a layer that
    unpacks itself (the planner's stand-in for one).
    """
    layer: Any = module
    if hasattr(layer, "unpacked"):
        return layer if layer.dtype == dtype and not layer.keeps_input else None
    if type(layer).__name__ != "Linear4bit" or not type(layer).__module__.startswith("bitsandbytes."):
        return None
    state = getattr(layer.weight, "quant_state", None)
    fits = state is not None and tuple(state.shape) == (layer.out_features, layer.in_features)
    if not fits or layer.compute_dtype != dtype or getattr(state, "packing_format_for_cpu", False):
        return None
    return _FourBits(layer.weight)
