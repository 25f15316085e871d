"""Segmented attention: a packed row of many sequences, each seeing itself and its ancestors only.

Registered with transformers' `AttentionInterface`, so any model that uses that interface can call it. No mask is
registered under its name, so transformers builds none; the segments travel as a keyword argument of the forward call
(gradient checkpointing hands them to the recomputation in backward, which a global could not do safely).

Shapes: T row length, U rows that attend, H query heads, K key-value heads, D head width; L rows of one segment that
attend, S tokens of the segment and of its ancestors.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.data.batch import Segment
from luthier.scoring.compiled import forest
from luthier.scoring.compiled.tiles import Numbers, numbers_of
from luthier.scoring.forest_attention import ForestAttention
from luthier.scoring.forest_parts import Decomposition

NAME = "luthier_segmented"

# What models pass along without changing the attention's mathematics. Anything else that is set changes it in a way
# this function does not know (soft caps, sinks, biases), so such a model goes the padded route.
HARMLESS = frozenset(
    {
        "position_ids",
        "use_cache",
        "cache_position",
        "output_attentions",
        "output_hidden_states",
        "is_causal",
        "return_dict",
        "output_router_logits",
    }
)


class UnsupportedAttentionError(ValueError):
    """The model asks the attention for something that the segmented route does not compute."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The segments of a row in the form that attention reads.

    Args:
        lengths: tokens of each segment, in row order.
        ancestors: of each segment, the indices of its ancestors from the root down.
        asked: how many tokens of each segment attend; they see the others too.
        decomposition: the same for `ForestAttention`, where that computes it. numbers: for `CompiledForestAttention`.
        longest: tokens of the longest sequence, from its root to a leaf.
        rows_U: the rows that attend, int64, ascending; None: all.
        last: the layout of the last layer, where only some rows of its output are read.
    """

    lengths: tuple[int, ...]
    ancestors: tuple[tuple[int, ...], ...]
    asked: tuple[int, ...]
    decomposition: Decomposition | None
    numbers: Numbers
    longest: int
    rows_U: Tensor | None = None
    last: Layout | None = None

    @classmethod
    def of(cls, segments: tuple[Segment, ...], read_U: Tensor | None = None) -> Layout:
        """The layout of a row; ValueError where the segments are no forest that covers it.

        Args:
            read_U: the rows of the last layer's output that are read, ascending; None: all.
        """
        chains: list[tuple[int, ...]] = []
        end = 0
        for index, segment in enumerate(segments):
            if segment.start != end or segment.end <= segment.start:
                raise ValueError(
                    f"segment {index} is [{segment.start}, {segment.end}) but the one before ends at {end}"
                )
            if segment.parent is not None and not 0 <= segment.parent < index:
                raise ValueError(f"segment {index} has the parent {segment.parent}, which does not come before it")
            chains.append(() if segment.parent is None else (*chains[segment.parent], segment.parent))
            end = segment.end
        lengths, ancestors = tuple(segment.end - segment.start for segment in segments), tuple(chains)
        longest = max(sum(lengths[part] for part in (*chain, index)) for index, chain in enumerate(chains))
        last = None
        if read_U is not None and len(read_U):
            rows = read_U.tolist()
            asked = tuple(bisect_left(rows, segment.end) - bisect_left(rows, segment.start) for segment in segments)
            numbers = numbers_of(segments, rows)
            last = cls(lengths, ancestors, asked, Decomposition.of(segments, rows), numbers, longest, read_U)
        return cls(lengths, ancestors, lengths, Decomposition.of(segments), numbers_of(segments), longest, last=last)


def _of_one_type(*parts: Tensor) -> tuple[Tensor, ...]:
    """What the kernel takes: under autocast, rotated queries and keys are float32 beside values of 16 bits."""
    device = parts[0].device.type
    if not torch.is_autocast_enabled(device):
        return parts
    return tuple(part.to(torch.get_autocast_dtype(device)) for part in parts)


def segmented_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Layout | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each segment and over its ancestors.

    Args:
        query: [1, H, U, D]. key, value: [1, K, T, D] with K dividing H.
        segments: the row's layout; all rows attend (U = T) unless it names those that do.
        sliding_window: positions a token sees, itself included.

    Returns:
        [1, U, H, D], and None where other functions return attention weights.

    Raises:
        UnsupportedAttentionError: a mask, or an argument that changes the mathematics in a way not known here.
    """
    if segments is None:
        raise UnsupportedAttentionError(
            "no segments reached the attention: the model does not pass keyword arguments on"
        )
    refuse_unknown({**others, "attention_mask": attention_mask}, getattr(module, "is_causal", True))
    if not _has_forest_kernel(query, key, value, segments, sliding_window, dropout):
        return _by_segments(query, key, value, segments, scaling, dropout, sliding_window), None
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    inputs = _of_one_type(query, key, value)
    if forest.takes(*inputs):
        return forest.CompiledForestAttention.apply(*inputs, segments.numbers, scale), None  # type: ignore[no-untyped-call]
    decomposition = segments.decomposition
    if decomposition is not None:
        learns = torch.is_grad_enabled() and any(part.requires_grad for part in inputs)
        parts = decomposition.fewest, decomposition.backward(key.shape[1]) if learns else decomposition.fewest
        return ForestAttention.apply(*inputs, *parts, scale, segments.numbers), None  # type: ignore[no-untyped-call]
    return _by_segments(query, key, value, segments, scaling, dropout, sliding_window), None


def _by_segments(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    segments: Layout,
    scaling: float | None,
    dropout: float,
    window: int | None,
) -> Tensor:
    """[1, U, H, D]: one call of sdpa for each segment, with copies of its ancestors' keys and values before its own."""
    groups = query.shape[1] // key.shape[1]
    # split, not slicing: its backward is one concatenation instead of a zero-filled [T] tensor for every segment
    queries = query.split(segments.asked, dim=2)
    keys, values = (part.split(segments.lengths, dim=2) for part in (key, value))
    rows_U = torch.arange(key.shape[2], device=key.device) if segments.rows_U is None else segments.rows_U
    ends = accumulate(segments.lengths)
    outputs = []
    for index, (chain, rows_L, end) in enumerate(
        zip(segments.ancestors, rows_U.split(segments.asked), ends, strict=True)
    ):
        if not len(rows_L):
            continue
        seen_keys, seen_values = keys[index], values[index]
        if chain:
            seen_keys = torch.cat([*(keys[i] for i in chain), seen_keys], dim=2)
            seen_values = torch.cat([*(values[i] for i in chain), seen_values], dim=2)
        mask = _mask(rows_L - end, seen_keys.shape[2], window)
        if mask is not None and groups > 1:  # with a mask, CUDA's memory-saving kernel takes no grouped heads
            seen_keys, seen_values = (part.repeat_interleave(groups, dim=1) for part in (seen_keys, seen_values))
        outputs.append(
            F.scaled_dot_product_attention(
                queries[index],
                seen_keys,
                seen_values,
                attn_mask=mask,
                dropout_p=dropout,
                is_causal=mask is None,
                scale=scaling,
                enable_gqa=mask is None and groups > 1,
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous()


def _has_forest_kernel(
    query: Tensor, key: Tensor, value: Tensor, segments: Layout, window: int | None, dropout: float
) -> bool:
    """Whether a forest is computed as a whole: on a CPU, nothing dropped, no window that cuts anything off, values as wide as
    keys (which those of latent attention are not)."""
    return (
        query.device.type == "cpu"
        and dropout == 0.0
        and (window is None or window >= segments.longest)
        and query.dtype == key.dtype
        and query.shape[-1] == value.shape[-1]
    )


def refuse_unknown(arguments: dict[str, Any], causal: bool) -> None:
    """Raise UnsupportedAttentionError for arguments of an attention call that change the mathematics."""
    unknown = sorted(
        name for name, given in arguments.items() if given is not None and given is not False and name not in HARMLESS
    )
    if unknown or not causal:
        raise UnsupportedAttentionError(f"the model's attention uses {', '.join(unknown) or 'both directions'}")


def _mask(back_L: Tensor, seen: int, window: int | None) -> Tensor | None:
    """The boolean mask [L, S], or None where sdpa's causal flag says the same.

    Args:
        back_L: where the rows that attend stand among the S tokens, counted from their end (-1: the last one).
    """
    if len(back_L) == seen and (window is None or seen <= window):
        return None
    position_L = (back_L + seen)[:, None]
    position_S = torch.arange(seen, device=back_L.device)[None, :]
    mask_LS = position_S <= position_L
    if window is not None:
        mask_LS &= position_S > position_L - window
    return mask_LS


AttentionInterface.register(NAME, segmented_attention)
