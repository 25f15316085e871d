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
from torch.autograd.function import once_differentiable

from luthier.scoring.compiled import passes
from luthier.scoring.fused.low_rank import LowRankMaps, in_place
from luthier.scoring.fused.packed import PackedWeight

PARTS = ("gate_proj", "up_proj", "down_proj")


class GatedMlp(torch.autograd.Function):
    """The block as a function of x and of its three maps: `LowRankMaps.constants`, then `tensors`."""

    @staticmethod
    def forward(
        ctx: Any, x_TH: Tensor, constants: Sequence[tuple[PackedWeight | None, float]], *tensors: Tensor | None
    ) -> Tensor:
        gate_and_up, down = _parts(constants, tensors)
        (gate_TF, up_TF), low_TS = gate_and_up.forward(x_TH)
        compiled = passes.takes(gate_TF, up_TF)
        product_TF = passes.gated(gate_TF, up_TF) if compiled else F.silu(gate_TF).mul_(up_TF)
        (y_TH,), low_down = down.forward(product_TF)
        ctx.save_for_backward(x_TH, gate_TF, up_TF, low_TS, low_down, *tensors)
        ctx.constants = constants
        return y_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x_TH, gate_TF, up_TF, low_TS, low_down, *tensors = ctx.saved_tensors
        gate_and_up, down = _parts(ctx.constants, tensors)
        low_gradient = down.low_gradient(gradients)
        inner_TF = down.input_gradient(gradients, low_gradient)
        compiled = passes.takes(gate_TF, up_TF, inner_TF)
        product_TF: Tensor | None
        if compiled:
            product_TF, gate_gradient_TF = passes.gated_backward(gate_TF, up_TF, inner_TF)
            up_gradient_TF = inner_TF
        else:
            silu_TF = F.silu(gate_TF)
            product_TF = None if low_gradient is None else silu_TF * up_TF
        down_factors = down.factor_gradients(gradients, low_gradient, low_down, product_TF)
        del product_TF
        if not compiled:
            up_gradient_TF = silu_TF.mul_(inner_TF)
            gate_gradient_TF = torch.ops.aten.silu_backward(inner_TF.mul_(up_TF), gate_TF)
        inner_gradients = gate_gradient_TF, up_gradient_TF
        low_gradient = gate_and_up.low_gradient(inner_gradients)
        factors = gate_and_up.factor_gradients(inner_gradients, low_gradient, low_TS, x_TH)
        into_TH = gate_and_up.input_gradient(inner_gradients, low_gradient) if ctx.needs_input_grad[0] else None
        return into_TH, None, *in_place([*factors, *down_factors])


def _parts(
    constants: Sequence[tuple[PackedWeight | None, float]], tensors: Sequence[Tensor | None]
) -> tuple[LowRankMaps, LowRankMaps]:
    """The maps of the block's input, gate and up, and the one that leads out."""
    return LowRankMaps.of(tensors[:8], constants[:2]), LowRankMaps.of(tensors[8:], constants[2:])
