"""Attention over a forest by compiled kernels, as two operations of torch.

As operations they are seen by whoever watches torch's (the plan's trace, profilers), and have shapes without values.

Shapes: T row length, U rows that attend, H query heads, K key-value heads, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.flop_counter import register_flop_formula

from luthier.scoring.compiled.compiler import launch, missing
from luthier.scoring.compiled.tiles import Numbers, tiles_of


def takes(*parts: Tensor) -> bool:
    """Whether the kernels compute with these tensors [1, heads, rows, D], whose rows and heads may lie in any order."""
    fit = all(part.dtype == torch.float32 and part.device.type == "cpu" and part.stride(-1) == 1 for part in parts)
    return fit and missing() is None


def attend(query: Tensor, key: Tensor, value: Tensor, forest: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    """Outputs [1, U, H, D] and log-sum-exps [1, U, H] for queries [1, H, U, D], keys and values [1, K, T, D].

    Args:
        forest: see `numbers_of`.
    """
    from luthier.scoring.compiled.kernels.forest import forward

    output_UHD, sum_UH = _attended(query, key, value, forest, scale)
    arguments, _kept = _arguments(query, key, value, output_UHD.transpose(1, 2), sum_UH, tuple(forest), scale)
    launch(forward, arguments)
    return output_UHD, sum_UH


def attend_backward(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sum_UH: Tensor,
    forest: Sequence[int],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values, [1, U, H, D], [1, T, K, D] and [1, T, K, D].

    Args:
        gradient, output: [1, H, U, D], the gradient's as the output's numbers lie.
    """
    from luthier.scoring.compiled.kernels.forest import backward

    into_UHD = torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)
    arguments, kept = _arguments(query, key, value, output, sum_UH, tuple(forest), scale)
    of_keys, of_values = (
        key.new_empty((len(kept[0]), key.shape[2], key.shape[1], key.shape[3])) for _ in ("keys", "values")
    )
    _put(arguments, gradient=gradient, query_gradient=into_UHD.transpose(1, 2))
    arguments["keys_gradient"], arguments["values_gradient"] = of_keys.data_ptr(), of_values.data_ptr()
    launch(backward, arguments)
    return into_UHD, of_keys.sum(dim=0, keepdim=True), of_values.sum(dim=0, keepdim=True)


def _arguments(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, sum_UH: Tensor, forest: Numbers, scale: float
) -> tuple[np.ndarray[Any, Any], list[Any]]:
    """What both kernels are told, and what must live until they have run: first the memory of the shares, a row each."""
    from luthier.scoring.compiled.kernels import forest as kernels

    (_, heads, asked, width), (key_heads, length) = query.shape, key.shape[1:3]
    tiles = tiles_of(forest, key_heads, heads // key_heads, torch.get_num_threads())
    of_share = kernels.memory_of_share(tiles.stacked * heads // key_heads, width)
    memory = torch.empty((len(tiles.shares) - 1, of_share), dtype=torch.uint8)
    arguments = np.zeros(1, kernels.ARGUMENTS)
    _put(arguments, query=query, key=key, value=value, output=output)
    numbers = {
        "sums": sum_UH.data_ptr(), "row_length": length, "asked": asked,
        "tiles": tiles.tiles.ctypes.data, "ranges": tiles.ranges.ctypes.data, "range_count": len(tiles.ranges),
        "shares": tiles.shares.ctypes.data, "share_count": len(memory), "positions": tiles.position_U.ctypes.data,
        "memory": memory.data_ptr(), "memory_of_share": of_share, "stacked": tiles.stacked,
        "heads": heads, "key_heads": key_heads, "width": width, "scale": scale,
    }  # fmt: skip
    for name, number in numbers.items():
        arguments[name] = number
    return arguments, [memory, tiles]


def _put(arguments: np.ndarray[Any, Any], **tensors: Tensor) -> None:
    """Where tensors [1, heads, rows, D] lie."""
    for name, tensor in tensors.items():
        arguments[name] = tensor.data_ptr()
        arguments[f"{name}_row"], arguments[f"{name}_head"] = tensor.stride(2), tensor.stride(1)


def _attended(query: Tensor, key: Tensor, value: Tensor, forest: Sequence[int], scale: float) -> tuple[Tensor, Tensor]:
    _, heads, asked, width = query.shape
    return query.new_empty((1, asked, heads, width)), query.new_empty((1, asked, heads))


def _gradients(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sum_UH: Tensor,
    forest: Any,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    into, of_keys, of_values = (
        torch.empty_like(part.transpose(1, 2), memory_format=torch.contiguous_format) for part in (query, key, value)
    )
    return into, of_keys, of_values


_library = torch.library.Library("luthier", "FRAGMENT")
_library.define(
    "forest_attention(Tensor query, Tensor key, Tensor value, int[] forest, float scale) -> (Tensor, Tensor)"
)
_library.define(
    "forest_attention_backward(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor output, Tensor sums, "
    "int[] forest, float scale) -> (Tensor, Tensor, Tensor)"
)
for _name, _computes, _shapes in (
    ("forest_attention", attend, _attended),
    ("forest_attention_backward", attend_backward, _gradients),
):
    _library.impl(_name, _computes, "CPU")
    _library.impl(_name, _shapes, "Meta")

_forward = torch.ops.luthier.forest_attention.default
_backward = torch.ops.luthier.forest_attention_backward.default


def _scores(query: Any, forest: Sequence[int], key_heads: int) -> int:
    """Scores that are computed for one key-value head's group, times its heads: of a tile, each row's with all its keys."""
    tiles = tiles_of(tuple(forest), 1, query[1] // key_heads, 1)
    own = sum(
        rows
        * (sum(end - start for start, end in tiles.ranges[low:high]) + tiles.position_U[first + rows - 1] + 1 - key)
        for _, first, rows, low, high, key in tiles.tiles
    )
    return int(own) * int(query[1])


@register_flop_formula(torch.ops.luthier.forest_attention)
def _flops(query: Any, key: Any, value: Any, forest: Any, scale: Any, *arguments: Any, out_shape: Any = None) -> int:
    """Two products for each score."""
    return 4 * int(query[3]) * _scores(query, forest, key[1])


@register_flop_formula(torch.ops.luthier.forest_attention_backward)
def _flops_backward(
    gradient: Any,
    query: Any,
    key: Any,
    value: Any,
    output: Any,
    sums: Any,
    forest: Any,
    scale: Any,
    out_shape: Any = None,
) -> int:
    """Five, one of them again."""
    return 10 * int(query[3]) * _scores(query, forest, key[1])


def gradients_of(
    gradient: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    sum_UH: Tensor,
    forest: Numbers,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`attend_backward` as torch's operation; the gradient may lie in any way."""
    gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
    into, of_keys, of_values = _backward(gradient, query, key, value, output, sum_UH, forest, scale)
    return into, of_keys, of_values


class CompiledForestAttention(torch.autograd.Function):
    """Attention of the rows of a forest that attend: [1, U, H, D] for queries [1, H, U, D], keys and values [1, K, T, D]."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, forest: Numbers, scale: float) -> Tensor:
        output_UHD, sum_UH = _forward(query, key, value, forest, scale)
        ctx.save_for_backward(query, key, value, output_UHD, sum_UH)
        ctx.forest, ctx.scale = forest, scale
        attended: Tensor = output_UHD
        return attended

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output_UHD, sum_UH = ctx.saved_tensors
        gradient, output = (whole.transpose(1, 2) for whole in (gradients[0], output_UHD))
        into = gradients_of(gradient, query, key, value, output, sum_UH, ctx.forest, ctx.scale)
        return *(whole.transpose(1, 2) for whole in into), None, None
