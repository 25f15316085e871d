"""Attention over a forest of segments on a CPU, exactly, without masks and without copies of keys.

A segment's tokens attend causally to each other, and every token that comes after it in its subtree attends to all of
it. In a row laid out depth first that is one rectangle for each segment with children: the rows of its subtree against
its keys. Every row's parts are then put together by their log-sum-exps, as blocks of one attention are (Dao et al. 2022,
https://arxiv.org/abs/2205.14135, section 3.1):

    l = log(exp(l1) + exp(l2)),  o = exp(l1 - l) o1 + exp(l2 - l) o2

The gradient needs no putting together: with the final o and l, a part's backward gives the part's share of it
(P = exp(S - l), dS = P (dP - rowsum(do o)), ibid. appendix B.4).

Shapes: T row length, U rows that attend, H query heads, K key-value heads, D head width, L rows of one part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@dataclass(frozen=True, slots=True)
class Part:
    """Rows [start, end) of the queries against rows [key_start, key_end) of the keys; causal: a stretch with itself."""

    start: int
    end: int
    key_start: int
    key_end: int
    causal: bool = False

    @property
    def rows(self) -> slice:
        """Of the queries."""
        return slice(self.start, self.end)

    @property
    def keys(self) -> slice:
        """Of the keys."""
        return slice(self.key_start, self.key_end)


class ForestAttention(torch.autograd.Function):
    """Attention of all parts: [1, U, H, D] for queries [1, H, U, D], keys and values [1, K, T, D].

    The causal parts cover the queries and come first; the others add to them.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Sequence[Part], scale: float) -> Tensor:
        outputs: list[Tensor] = []
        sums: list[Tensor] = []
        for part in parts:
            if not part.causal:
                break
            output, sum_ = _forward(
                query[:, :, part.rows], key[:, :, part.keys], value[:, :, part.keys], 0.0, True, scale=scale
            )
            outputs.append(output.transpose(1, 2))
            sums.append(sum_.transpose(1, 2))
        output_UHD = torch.cat(outputs, dim=1)
        sum_UH = torch.cat(sums, dim=1)
        for part in parts[len(outputs) :]:
            output, sum_ = _forward(
                query[:, :, part.rows], key[:, :, part.keys], value[:, :, part.keys], 0.0, False, scale=scale
            )
            _put_together(output_UHD[:, part.rows], sum_UH[:, part.rows], output.transpose(1, 2), sum_.transpose(1, 2))
        ctx.save_for_backward(query, key, value, output_UHD, sum_UH)
        ctx.parts, ctx.scale = parts, scale
        return output_UHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output_UHD, sum_UH = ctx.saved_tensors
        gradient, output, sums = (part.transpose(1, 2) for part in (gradients[0], output_UHD, sum_UH))
        covered = sum(part.key_end - part.key_start for part in ctx.parts if part.causal) == key.shape[2]
        for_keys = torch.empty_like if covered else torch.zeros_like  # a key that no part is causal in is only added to
        # as [1, T, H, D] in memory, like what the kernel gives
        into = [
            make(part.transpose(1, 2).contiguous()).transpose(1, 2)
            for make, part in ((torch.empty_like, query), (for_keys, key), (for_keys, value))
        ]
        for part in ctx.parts:
            found = _backward(
                gradient[:, :, part.rows],
                query[:, :, part.rows],
                key[:, :, part.keys],
                value[:, :, part.keys],
                output[:, :, part.rows],
                sums[:, :, part.rows],
                0.0,
                part.causal,
                scale=ctx.scale,
            )
            for whole, own, rows in zip(into, found, (part.rows, part.keys, part.keys), strict=True):
                if part.causal:
                    whole[:, :, rows] = own
                else:
                    whole[:, :, rows] += own
        return (*into, None, None)


def _put_together(output_LHD: Tensor, sum_LH: Tensor, more_LHD: Tensor, more_sum_LH: Tensor) -> None:
    """Add a part to what its rows have seen before, in place."""
    together_LH = torch.logaddexp(sum_LH, more_sum_LH)
    output_LHD.mul_((sum_LH - together_LH).exp_().unsqueeze(-1).to(output_LHD.dtype))
    output_LHD.addcmul_(more_LHD, (more_sum_LH - together_LH).exp_().unsqueeze(-1).to(output_LHD.dtype))
    sum_LH.copy_(together_LH)
