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
from luthier.scoring.compiled.tiles import Numbers, Tiles, tiles_of


def takes(*parts: Tensor) -> bool:
    """Whether the kernels compute with these tensors [1, heads, rows, D], whose rows and heads may lie in any order."""
    fit = all(
        part.dtype == torch.float32
        and part.device.type == "cpu"
        and len(part) == 1
        and part.stride(-1) == 1
        and (part.shape[2] < 2 or part.stride(2) >= part.shape[3])  # BLAS refuses rows that lie over each other
        for part in parts
    )
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
    of_keys: Tensor,
    of_values: Tensor,
    forest: Sequence[int],
    scale: float,
) -> Tensor:
    """The gradient of queries [1, U, H, D].

    Args:
        gradient, output: [1, H, U, D].
        of_keys, of_values: [slots, T, D], filled with what each slot of the tiles has of their gradients.
    """
    from luthier.scoring.compiled.kernels.forest import backward

    into_UHD = _of_query(query)
    arguments, _kept = _arguments(query, key, value, output, sum_UH, tuple(forest), scale)
    _put(arguments, gradient=gradient, query_gradient=into_UHD.transpose(1, 2))
    arguments["keys_gradient"], arguments["values_gradient"] = of_keys.data_ptr(), of_values.data_ptr()
    launch(backward, arguments)
    return into_UHD


def _tiles(query: Tensor, key: Tensor, forest: Sequence[int]) -> Tiles:
    return tiles_of(tuple(forest), key.shape[1], query.shape[1] // key.shape[1], torch.get_num_threads())


def _arguments(
    query: Tensor, key: Tensor, value: Tensor, output: Tensor, sum_UH: Tensor, forest: Numbers, scale: float
) -> tuple[np.ndarray[Any, Any], list[Any]]:
    """What both kernels are told, and what must live until they have run."""
    from luthier.scoring.compiled.kernels import forest as kernels

    (_, heads, asked, width), (key_heads, length) = query.shape, key.shape[1:3]
    tiles = _tiles(query, key, forest)
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


def _of_query(query: Tensor) -> Tensor:
    return torch.empty_like(query.transpose(1, 2), memory_format=torch.contiguous_format)


_library = torch.library.Library("luthier", "FRAGMENT")
_library.define(
    "forest_attention(Tensor query, Tensor key, Tensor value, int[] forest, float scale) -> (Tensor, Tensor)"
)
_library.define(
    "forest_attention_backward(Tensor gradient, Tensor query, Tensor key, Tensor value, Tensor output, Tensor sums, "
    "Tensor(a!) of_keys, Tensor(b!) of_values, int[] forest, float scale) -> Tensor"
)
for _name, _computes, _shapes in (
    ("forest_attention", attend, _attended),
    ("forest_attention_backward", attend_backward, lambda gradient, query, *others: _of_query(query)),
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
        for _, first, rows, low, high, key, _ in tiles.tiles
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
    of_keys: Any,
    of_values: Any,
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
    """Of queries, keys and values, [1, U, H, D], [1, T, K, D] and [1, T, K, D]; that of the output may lie in any way.

    A key-value head whose tiles several threads compute has a slot for each: they are added up here.
    """
    gradient = gradient if gradient.stride(-1) == 1 else gradient.contiguous()
    head_of_slot = _tiles(query, key, forest).head_of_slot
    slots = [key.new_empty((len(head_of_slot), key.shape[2], key.shape[3])) for _ in ("keys", "values")]
    into = _backward(gradient, query, key, value, output, sum_UH, *slots, forest, scale)
    _, heads, length, width = key.shape
    sums = [key.new_empty((1, length, heads, width)) for _ in slots]
    for whole, parts in zip(sums, slots, strict=True):
        for slot, head in enumerate(head_of_slot):
            if slot and head_of_slot[slot - 1] == head:
                whole[0, :, head].add_(parts[slot])
            else:
                whole[0, :, head].copy_(parts[slot])
    return into, sums[0], sums[1]


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
