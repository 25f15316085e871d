"""Segmented attention: a packed row of many sequences, each seeing itself and its ancestors only.

Registered with transformers' `AttentionInterface`, so any model that uses that interface can call it. No mask is
registered under its name, so transformers builds none; the segments travel as a keyword argument of the forward call
(gradient checkpointing hands them to the recomputation in backward, which a global could not do safely).

Shapes: T row length, H query heads, K key-value heads, D head width; L and A, tokens of one segment and of its ancestors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.data.batch import Segment
from luthier.scoring.forest_attention import ForestAttention, Part

NAME = "luthier_segmented"

# Tokens of a segment that is computed in halves: the CPU kernel computes the half that the causal flag masks, too, and
# is a sixth slower below 192 rows.
HALVED_FROM = 384

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
        rows_U: rows of the last layer's output that are read, int64; None: all.
        parts: the same for `ForestAttention`; none where the segments do not stand depth first.
    """

    lengths: tuple[int, ...]
    ancestors: tuple[tuple[int, ...], ...]
    parts: tuple[Part, ...]
    rows_U: Tensor | None = None

    @classmethod
    def of(cls, segments: tuple[Segment, ...], rows_U: Tensor | None = None) -> Layout:
        """The layout of a row; ValueError where the segments are no forest that covers it."""
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
        lengths = tuple(segment.end - segment.start for segment in segments)
        return cls(lengths, tuple(chains), _parts(segments, chains), rows_U)


def _parts(segments: tuple[Segment, ...], chains: list[tuple[int, ...]]) -> tuple[Part, ...]:
    """Each segment with itself, long ones in halves, then the rows of each subtree with the tokens of its root."""
    subtree_end = [segment.end for segment in segments]
    for index, chain in enumerate(chains):
        # depth first: the parent is the segment before, or one of its ancestors
        if chain and chain[-1] != index - 1 and chain[-1] not in chains[index - 1]:
            return ()
        for ancestor in chain:
            subtree_end[ancestor] = segments[index].end
    triangles: list[Part] = []
    squares: list[Part] = []
    for segment in segments:
        _halve(segment.start, segment.end, triangles, squares)
    below = [
        Part(segment.end, end, segment.start, segment.end)
        for segment, end in zip(segments, subtree_end, strict=True)
        if end > segment.end
    ]
    return (*triangles, *squares, *below)


def _halve(start: int, end: int, triangles: list[Part], squares: list[Part]) -> None:
    """A segment with itself: both its halves, and the second with the first."""
    if end - start < HALVED_FROM:
        triangles.append(Part(start, end, start, end))
        return
    middle = (start + end) // 2
    _halve(start, middle, triangles, squares)
    _halve(middle, end, triangles, squares)
    squares.append(Part(middle, end, start, middle))


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
        query: [1, H, T, D]. key, value: [1, K, T, D] with K dividing H.
        segments: the row's layout.
        sliding_window: positions a token sees, itself included.

    Returns:
        [1, T, H, D], and None where other functions return attention weights.

    Raises:
        UnsupportedAttentionError: a mask, or an argument that changes the mathematics in a way not known here.
    """
    if segments is None:
        raise UnsupportedAttentionError(
            "no segments reached the attention: the model does not pass keyword arguments on"
        )
    refuse_unknown({**others, "attention_mask": attention_mask}, getattr(module, "is_causal", True))
    if _has_forest_kernel(query, key, segments, sliding_window, dropout):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return ForestAttention.apply(*_of_one_type(query, key, value), segments.parts, scale), None  # type: ignore[no-untyped-call]
    groups = query.shape[1] // key.shape[1]
    # split, not slicing: its backward is one concatenation instead of a zero-filled [T] tensor for every segment
    queries, keys, values = (part.split(segments.lengths, dim=2) for part in (query, key, value))
    outputs = []
    for index, chain in enumerate(segments.ancestors):
        seen_keys, seen_values = keys[index], values[index]
        if chain:
            seen_keys = torch.cat([*(keys[i] for i in chain), seen_keys], dim=2)
            seen_values = torch.cat([*(values[i] for i in chain), seen_values], dim=2)
        mask = _mask(queries[index].shape[2], seen_keys.shape[2], sliding_window, query.device)
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
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _has_forest_kernel(query: Tensor, key: Tensor, segments: Layout, window: int | None, dropout: float) -> bool:
    """Whether `ForestAttention` computes this: on a CPU, nothing dropped, no window that cuts anything off."""
    return (
        query.device.type == "cpu"
        and dropout == 0.0
        and bool(segments.parts)
        and (window is None or window >= query.shape[2])
        and query.dtype == key.dtype
    )


def refuse_unknown(arguments: dict[str, Any], causal: bool) -> None:
    """Raise UnsupportedAttentionError for arguments of an attention call that change the mathematics."""
    unknown = sorted(
        name for name, given in arguments.items() if given is not None and given is not False and name not in HARMLESS
    )
    if unknown or not causal:
        raise UnsupportedAttentionError(f"the model's attention uses {', '.join(unknown) or 'both directions'}")


def _mask(own: int, seen: int, window: int | None, device: torch.device) -> Tensor | None:
    """The boolean mask [L, A + L], or None where sdpa's causal flag says the same."""
    if own == seen and (window is None or seen <= window):
        return None
    position_L = torch.arange(seen - own, seen, device=device)[:, None]
    position_S = torch.arange(seen, device=device)[None, :]
    mask_LS = position_S <= position_L
    if window is not None:
        mask_LS &= position_S > position_L - window
    return mask_LS


AttentionInterface.register(NAME, segmented_attention)
