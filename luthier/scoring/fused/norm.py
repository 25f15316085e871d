"""Root mean square norm with a frozen or trained weight (Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, equation 4).

    y = w * x / sqrt(mean(x^2) + eps)

Rows of 16 bits are normed in float32 and rounded before they meet the weight, as transformers' norm does.

Shapes: T tokens, H width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.scoring.compiled import passes
from luthier.scoring.fused.casting import summed_in


class RootMeanSquareNorm(torch.autograd.Function):
    """The norm of rows [T, H]; keeps x and one number a row for backward, where module by module keeps three [T, H]."""

    @staticmethod
    def forward(ctx: Any, x_TH: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        if passes.takes(x_TH, weight_H):
            compiled_TH, inverse_T1 = passes.norm(x_TH, weight_H, epsilon)
            ctx.save_for_backward(x_TH, weight_H, inverse_T1)
            return compiled_TH
        wide_TH = _wide(x_TH)
        # the norm's square is a sum: no [T, H] tensor of squares is made
        mean_T1 = torch.linalg.vector_norm(wide_TH, dim=-1, keepdim=True).square_().div_(x_TH.shape[-1])
        inverse_T1 = mean_T1.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x_TH, weight_H, inverse_T1)
        normed_TH = (wide_TH * inverse_T1).to(x_TH.dtype)
        y_TH: Tensor = normed_TH.mul_(weight_H) if weight_H.dtype == x_TH.dtype else normed_TH * weight_H
        return y_TH

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        """dx = r (w g) - x r^3 mean(x w g),  dw = sum_T g x r,  with r = 1 / sqrt(mean(x^2) + eps)."""
        (gradient_TH,) = gradients
        x_TH, weight_H, inverse_T1 = ctx.saved_tensors
        wide_TH = _wide(x_TH)
        weight_gradient = None
        if ctx.needs_input_grad[1]:
            weight_gradient = torch.einsum("th,th,t->h", _wide(gradient_TH), wide_TH, inverse_T1[:, 0])
        if not ctx.needs_input_grad[0]:
            return None, weight_gradient, None
        if passes.takes(gradient_TH, x_TH, weight_H):
            return passes.norm_backward(gradient_TH, weight_H, x_TH, inverse_T1), weight_gradient, None
        scaled_TH = _wide(gradient_TH) * weight_H
        mean_T1 = torch.linalg.vecdot(scaled_TH, wide_TH)[:, None].div_(x_TH.shape[-1])
        into_TH = scaled_TH.mul_(inverse_T1).addcmul_(wide_TH, mean_T1.mul_(inverse_T1**3), value=-1)
        return into_TH.to(x_TH.dtype), weight_gradient, None


def _wide(x: Tensor) -> Tensor:
    """In the precision in which rows are summed up."""
    return x.to(summed_in(x))
