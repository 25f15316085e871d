"""Rotary position embeddings in two passes over memory each way.

    (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)        (Su et al. 2021, https://arxiv.org/abs/2104.09864, equation 34)

with x1 and x2 the two halves of a head. transformers writes it as x cos + rotate_half(x) sin, which makes five tensors
of the size of x in forward, and autograd eight in backward; here x cos is added to in place. The gradient is turned the
other way round, by the other half's sines.

Shapes: T row length, H heads, D head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import FunctionType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from luthier.scoring.compiled import passes
from luthier.scoring.fused.formulas import formula

_NAME = "apply_rotary_pos_emb"


class Rotation(torch.autograd.Function):
    """x turned by its positions' angles: [1, H, T, D] for x of that shape and cos, sin [1, T, D].

    Under autocast x may have 16 bits and the angles 32: it is turned in theirs, and rounded.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        if passes.takes_heads(x, cos, sin):
            return passes.turn(x, cos, sin, back=False).transpose(1, 2)
        return _turned(x, cos.unsqueeze(1), sin.unsqueeze(1))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        if passes.takes_heads(gradient, cos, sin):
            return passes.turn(gradient, cos, sin, back=True).transpose(1, 2), None, None
        cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
        return _turned(gradient, cos, -sin.roll(sin.shape[-1] // 2, -1)), None, None


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    dtype, x = x.dtype, x.to(cos.dtype)
    turned = x * cos
    (x1, x2), (first, second), (sin1, sin2) = (part.chunk(2, dim=-1) for part in (x, turned, sin))
    first.addcmul_(x2, sin1, value=-1)
    second.addcmul_(x1, sin2)
    return turned.to(dtype)


@functools.cache
def rotation(forward: Any) -> Callable[..., tuple[Tensor, Tensor]] | None:
    """What an attention layer's forward turns its queries and keys with (they, cos and sin are the arguments): with
    `Rotation` in it where that is Llama's formula, else its family's own; None where there is no such function."""
    from transformers.models.llama import modeling_llama

    if not isinstance(forward, FunctionType) or forward.__closure__ or _NAME not in forward.__code__.co_names:
        return None
    own = forward.__globals__.get(_NAME)
    if not isinstance(own, FunctionType):
        return None
    halves = own.__globals__.get("rotate_half")
    if formula(own) != formula(modeling_llama.apply_rotary_pos_emb) or not isinstance(halves, FunctionType):
        return own
    if formula(halves) != formula(modeling_llama.rotate_half):
        return own

    def turn(query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, *others: Any, **named: Any) -> tuple[Tensor, Tensor]:
        if others or named or not _takes(query, cos, sin) or not _takes(key, cos, sin):
            turned: tuple[Tensor, Tensor] = own(query, key, cos, sin, *others, **named)
            return turned
        return Rotation.apply(query, cos, sin), Rotation.apply(key, cos, sin)  # type: ignore[no-untyped-call]

    return turn


@functools.cache
def turning(forward: Any) -> Callable[..., Any] | None:
    """An attention layer's forward with `Rotation` in it, or None where it turns nothing, or otherwise than Llama.

    It computes on by its family's own text, in which that one function is another: whatever else a family's attention
    does (norms of heads, windows) stays as it is.
    """
    turn = rotation(forward)
    if turn is None or turn is forward.__globals__[_NAME]:
        return None
    copy = FunctionType(forward.__code__, {**forward.__globals__, _NAME: turn}, forward.__name__, forward.__defaults__)
    copy.__kwdefaults__ = forward.__kwdefaults__
    return copy


def _takes(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether x is turned in whole and by angles at least as precise, on a CPU, where passes over memory are what costs."""
    precise = torch.promote_types(x.dtype, cos.dtype) == cos.dtype == sin.dtype
    return x.device.type == "cpu" and x.shape[-1] == cos.shape[-1] and precise
