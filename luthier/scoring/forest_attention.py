"""Attention over a forest of segments on a CPU, exactly, without masks and without copies of keys.

A segment's tokens attend causally to each other, and every token that comes after it in its subtree attends to all of
it. In a row laid out depth first that is one rectangle for each segment with children: the rows of its subtree against
its keys. Every row's parts are then put together by their log-sum-exps, as blocks of one attention are (Dao et al. 2022,
https://arxiv.org/abs/2205.14135, section 3.1):

    l = log(exp(l1) + exp(l2)),  o = exp(l1 - l) o1 + exp(l2 - l) o2

The gradient needs no putting together: with the final o and l, a part's backward gives the part's share of it
(P = exp(S - l), dS = P (dP - rowsum(do o)), ibid. appendix B.4). So forward and backward may take the row apart in ways of their own. A row
that no part is causal in has seen nothing before the others: o = 0, l = -inf.

Shapes: T row length, U rows that attend, H query heads, K key-value heads, D head width; B blocks of one part, L rows of
one block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.scoring.compiled import forest
from luthier.scoring.compiled.tiles import Numbers
from luthier.scoring.forest_parts import Parts
from luthier.scoring.fused.casting import summed_in

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class ForestAttention(torch.autograd.Function):
    """Attention of all parts: [1, U, H, D] for queries [1, H, U, D], keys and values [1, K, T, D]."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        forward_parts: Parts,
        backward_parts: Parts,
        scale: float,
        numbers: Numbers | None = None,
    ) -> Tensor:
        """Outputs.

        Args:
            numbers: the same forest for compiled kernels, by which backward of 16 bits is computed where there are any.
        """
        _, heads, asked, width = query.shape
        output_UHD = query.new_empty((1, asked, heads, width))
        sum_UH = query.new_empty((1, asked, heads), dtype=summed_in(query))
        _fill(output_UHD, forward_parts.bare_rows, 0.0)
        _fill(sum_UH, forward_parts.bare_rows, -torch.inf)
        output, sums = output_UHD.transpose(1, 2), sum_UH.transpose(1, 2)
        for part in forward_parts.parts:
            more, more_sums = _forward(
                part.of_queries(query), part.of_keys(key), part.of_keys(value), 0.0, part.causal, scale=scale
            )
            if part.causal:
                part.of_queries(output).copy_(more)
                part.of_queries(sums).copy_(more_sums)
            else:
                _put_together(part.of_queries(output), part.of_queries(sums), more, more_sums)
        ctx.save_for_backward(query, key, value, output_UHD, sum_UH)
        ctx.parts, ctx.scale, ctx.numbers = backward_parts, scale, numbers
        return output_UHD

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output_UHD, sum_UH = ctx.saved_tensors
        gradient, output, sums = (whole.transpose(1, 2) for whole in (gradients[0], output_UHD, sum_UH))
        if ctx.numbers is not None and query.dtype != summed_in(query):
            # torch's kernel is up to five times slower in 16 bits than in float32, casts included
            of_output, q, k, v, o = (whole.to(summed_in(whole)) for whole in (gradient, query, key, value, output))
            if forest.takes(q, k, v, o):
                found = forest.gradients_of(of_output, q, k, v, o, sum_UH, ctx.numbers, ctx.scale)
                return *(whole.transpose(1, 2).to(query.dtype) for whole in found), None, None, None, None
        parts: Parts = ctx.parts
        # in memory as [1, T, H, D], like what the kernel gives
        into = [
            torch.empty_like(whole.transpose(1, 2), dtype=summed_in(whole), memory_format=torch.contiguous_format)
            for whole in (query, key, value)
        ]
        for whole, bare in zip(into, (parts.bare_rows, parts.bare_keys, parts.bare_keys), strict=True):
            _fill(whole, bare, 0.0)
        of_query, of_key, of_value = (whole.transpose(1, 2) for whole in into)
        for part in parts.parts:
            own_query, own_key, own_value = _backward(
                *(part.of_queries(whole).to(summed_in(whole)) for whole in (gradient, query)),
                *(part.of_keys(whole).to(summed_in(whole)) for whole in (key, value)),
                part.of_queries(output).to(summed_in(output)),
                part.of_queries(sums),
                0.0,
                part.causal,
                scale=ctx.scale,
            )
            if part.causal:
                part.of_queries(of_query).copy_(own_query)
                part.of_keys(of_key).copy_(own_key)
                part.of_keys(of_value).copy_(own_value)
            else:
                part.of_queries(of_query).add_(own_query)
                part.add_to_keys(of_key, own_key)
                part.add_to_keys(of_value, own_value)
        return *(whole.to(query.dtype) for whole in (of_query, of_key, of_value)), None, None, None, None


def _fill(whole: Tensor, rows: Tensor, value: float) -> None:
    """Some rows of a tensor [1, T, ...]."""
    if len(rows):
        whole.index_fill_(1, rows, value)


def _put_together(output: Tensor, sums: Tensor, more: Tensor, more_sums: Tensor) -> None:
    """Add a part to what its rows have seen before, in place: outputs [B, H, L, D], log-sum-exps [B, H, L]."""
    together = torch.logaddexp(sums, more_sums)
    output.mul_((sums - together).exp_().unsqueeze(-1).to(output.dtype))
    output.addcmul_(more, (more_sums - together).exp_().unsqueeze(-1).to(output.dtype))
    sums.copy_(together)
