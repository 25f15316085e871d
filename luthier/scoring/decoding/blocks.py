"""Attention of some queries over some keys, with its log-sum-exp, so that blocks can be put together to one attention.

    l = log(exp(l1) + exp(l2)),  o = exp(l1 - l) o1 + exp(l2 - l) o2

(Dao et al. 2022, https://arxiv.org/abs/2205.14135, section 3.1.)

Shapes: B rows, H query heads, K key-value heads, L queries, S keys, D head width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu


def attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, *, causal: bool = False, bias: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention and its log-sum-exp.

    Args:
        query: [B, H, L, D]. key, value: [B, K, S, D] with K dividing H.
        causal: the i-th query sees the first i keys; L = S then.
        bias: added to the scores, [B, 1, 1, S]; every query must see a key.

    Returns:
        [B, L, H, D], and float32 [B, L, H].
    """
    if query.device.type == "cpu":
        output, sums = _flash(query, key, value, 0.0, causal, attn_mask=bias, scale=scale)
        return output.transpose(1, 2), sums.view(query.shape[:3]).transpose(1, 2)
    return _by_products(query, key, value, scale, causal, bias)


def _by_products(
    query: Tensor, key: Tensor, value: Tensor, scale: float, causal: bool, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same where there is no kernel that gives the log-sum-exp."""
    rows, heads, length, width = query.shape
    groups = heads // key.shape[1]
    grouped = query.reshape(rows, key.shape[1], groups * length, width)
    scores = torch.matmul(grouped, key.transpose(2, 3)).float().mul_(scale)
    scores = scores.view(rows, key.shape[1], groups, length, -1)
    if bias is not None:
        scores = scores + bias[:, :, None]
    if causal:
        later = torch.ones(length, key.shape[2], dtype=torch.bool, device=query.device).triu_(1)
        scores = scores.masked_fill(later, -math.inf)
    sums = scores.logsumexp(dim=-1)
    shares = scores.sub_(sums[..., None]).exp_().to(value.dtype)
    output = torch.matmul(shares.view(rows, key.shape[1], groups * length, -1), value)
    output = output.view(rows, heads, length, width).transpose(1, 2)
    return output, sums.view(rows, heads, length).transpose(1, 2)


def put_together(output: Tensor, sums: Tensor, more: Tensor, more_sums: Tensor) -> None:
    """Add a block to what the same queries have seen before, in place: [..., H, D] and [..., H]."""
    together = torch.logaddexp(sums, more_sums)
    output.mul_((sums - together).exp_().unsqueeze(-1).to(output.dtype))
    output.addcmul_(more, (more_sums - together).exp_().unsqueeze(-1).to(output.dtype))
    sums.copy_(together)
