"""The gated feed-forward block (Shazeer 2020, https://arxiv.org/abs/2002.05202, equation 6, SwiGLU) over low-rank maps.

    y = down(silu(gate(x)) * up(x))

Keeps x, gate(x) and up(x) for backward and makes the rest again, a pass or two over [T, F], where module by module
keeps two more tensors of that size and makes four passes more.

Shapes: T tokens, H hidden width, F feed-forward width, R rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from luthier.scoring.fused.low_rank import LowRank, either
from luthier.scoring.fused.packed import PackedWeight

PARTS = ("gate_proj", "up_proj", "down_proj")


class GatedMlp(torch.autograd.Function):
    """The block as a function of x and of its three maps: `LowRank.packed` and `scaling` of each, then `LowRank.tensors`."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TH: Tensor,
        packed: Sequence[PackedWeight | None],
        scalings: Sequence[float],
        *tensors: Tensor | None,
    ) -> Tensor:
        gate, up, down = _parts(packed, scalings, tensors)
        gate_TF, low_gate = gate.forward(x_TH)
        up_TF, low_up = up.forward(x_TH)
        y_TH, low_down = down.forward(F.silu(gate_TF).mul_(up_TF))
        ctx.save_for_backward(x_TH, gate_TF, up_TF, low_gate, low_up, low_down, *tensors)
        ctx.packed, ctx.scalings = packed, scalings
        return y_TH

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_TH,) = gradients
        x_TH, gate_TF, up_TF, low_gate, low_up, low_down, *tensors = ctx.saved_tensors
        gate, up, down = _parts(ctx.packed, ctx.scalings, tensors)
        silu_TF = F.silu(gate_TF)
        low_gradient = down.low_gradient(gradient_TH)
        inner_TF = down.input_gradient(gradient_TH, low_gradient)
        down_factors: tuple[Tensor | None, Tensor | None] = (None, None)
        if low_gradient is not None:
            down_factors = down.factor_gradients(gradient_TH, low_gradient, low_down, silu_TF * up_TF)
        up_gradient_TF = silu_TF.mul_(inner_TF)
        gate_gradient_TF = torch.ops.aten.silu_backward(inner_TF.mul_(up_TF), gate_TF)
        low_up_gradient, low_gate_gradient = up.low_gradient(up_gradient_TF), gate.low_gradient(gate_gradient_TF)
        gate_factors = gate.factor_gradients(gate_gradient_TF, low_gate_gradient, low_gate, x_TH)
        up_factors = up.factor_gradients(up_gradient_TF, low_up_gradient, low_up, x_TH)
        into_TH = None
        if ctx.needs_input_grad[0]:
            into_TH = gate.input_gradient(gate_gradient_TF, low_gate_gradient)
            into_TH = up.input_gradient(up_gradient_TF, low_up_gradient, into_TH)
        return into_TH, None, None, None, None, *gate_factors, None, None, *up_factors, None, None, *down_factors


def _parts(
    packed: Sequence[PackedWeight | None], scalings: Sequence[float], tensors: Sequence[Any]
) -> tuple[LowRank, LowRank, LowRank]:
    """The three maps from their tensors, four each."""
    of_each = (tensors[:4], tensors[4:8], tensors[8:])
    gate, up, down = (
        LowRank(either(weight, whole), bias, down_factor, up_factor, scaling)
        for (weight, bias, down_factor, up_factor), whole, scaling in zip(of_each, packed, scalings, strict=True)
    )
    return gate, up, down
