"""Segmented attention: a packed row of many sequences, each seeing itself and its ancestors only.

Registered with transformers' `AttentionInterface`, so any model that uses that interface can call it. No mask is
registered under its name, so transformers builds none; the segments travel as a keyword argument of the forward call
(gradient checkpointing hands them to the recomputation in backward, which a global could not do safely).

Shapes: T row length, U rows that attend, H query heads, K key-value heads, D head width; L rows of one segment that
attend, S tokens of the segment and of its ancestors.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from luthier.data.batch import Segment
from luthier.scoring.forest_attention import ForestAttention, Part, Parts

NAME = "luthier_segmented"

# Tokens from which on a stretch is computed in halves. The kernel also computes what the causal flag masks, which halves leave
# out in part, but it is a sixth slower below 192 rows. In backward it deals whole key-value heads to the threads, of which one
# is often left over; two halves at once split evenly, so with threads it is worth it sooner there, once.
HALVED_FROM = 384
HALVED_WITH_THREADS = 128

# Rows that make up for a run of their own among those that attend (two calls of the kernel each way); where they lie more
# scattered, a mask says what each sees.
WORTH_A_RUN = 8

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
        parts: the same for `ForestAttention`, forward and backward; none where the segments do not stand depth first, or too
            scattered rows attend.
        longest: tokens of the longest sequence, from its root to a leaf.
        rows_U: the rows that attend, int64, ascending; None: all.
        last: the layout of the last layer, where only some rows of its output are read.
    """

    lengths: tuple[int, ...]
    ancestors: tuple[tuple[int, ...], ...]
    asked: tuple[int, ...]
    parts: tuple[Parts, Parts] | None
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
            runs = _runs(segments, read_U.tolist())
            asked = tuple(sum(map(len, own)) for own in runs)
            last = cls(lengths, ancestors, asked, _parts(segments, chains, runs), longest, read_U)
        whole = _parts(segments, chains, [[range(segment.start, segment.end)] for segment in segments])
        return cls(lengths, ancestors, lengths, whole, longest, last=last)


def _runs(segments: tuple[Segment, ...], rows: list[int]) -> list[list[range]]:
    """Of each segment, those of some ascending rows that are its own, as ranges."""
    found: list[list[range]] = []
    for segment in segments:
        runs: list[range] = []
        for row in rows[bisect_left(rows, segment.start) : bisect_left(rows, segment.end)]:
            if runs and runs[-1].stop == row:
                runs[-1] = range(runs[-1].start, row + 1)
            else:
                runs.append(range(row, row + 1))
        found.append(runs)
    return found


def _parts(
    segments: tuple[Segment, ...], chains: Sequence[tuple[int, ...]], runs: Sequence[Sequence[range]]
) -> tuple[Parts, Parts] | None:
    """What is computed by one call each, forward and backward: each run with itself, long ones in halves, and with its
    segment's tokens before it; then the runs of each subtree with the tokens of its root."""
    last_below = list(range(len(segments)))
    for index, chain in enumerate(chains):
        # depth first: the parent is the segment before, or one of its ancestors
        if chain and chain[-1] != index - 1 and chain[-1] not in chains[index - 1]:
            return None
        for ancestor in chain:
            last_below[ancestor] = index
    rows_before = list(accumulate((sum(map(len, own)) for own in runs), initial=0))
    if sum(map(len, runs)) > len(segments) + rows_before[-1] / WORTH_A_RUN:
        return None

    def halved_from(length: int) -> Parts:
        triangles: list[Part] = []
        squares: list[Part] = []
        below: list[Part] = []
        for index, (segment, own) in enumerate(zip(segments, runs, strict=True)):
            place = rows_before[index]
            for run in own:
                _with_itself(run.start, len(run), place - run.start, length, triangles, squares)
                if run.start > segment.start:
                    squares.append(_with_all(place, len(run), segment.start, run.start - segment.start))
                place += len(run)
            descendants = rows_before[last_below[index] + 1] - place
            if descendants:
                below.append(_with_all(place, descendants, segment.start, segment.end - segment.start))
        return Parts.of((*triangles, *squares, *below), rows_before[-1], segments[-1].end)

    return halved_from(HALVED_FROM), halved_from(HALVED_FROM if torch.get_num_threads() == 1 else HALVED_WITH_THREADS)


def _with_itself(
    start: int,
    length: int,
    shift: int,
    halved_from: int,
    triangles: list[Part],
    squares: list[Part],
    runs: int = 1,
    apart: int = 0,
) -> None:
    """Equally long runs, each with itself; long ones as halves, and the second half with the first.

    Where the length is odd, the row in the middle is in neither half: it sees the first half and itself, and the second half
    sees both, which is one rectangle more.

    Args:
        shift: from a row's place in the whole row to its place among those that attend.
        apart: from the beginning of one run to that of the next.
    """
    if length < halved_from:
        triangles.append(Part(start + shift, length, start, length, True, runs, apart, apart))
        return
    half, rest = length // 2, length - length // 2
    if runs == 1:
        _with_itself(start, half, shift, HALVED_FROM, triangles, squares, 2, rest)
        squares.append(_with_all(start + half + shift, rest, start, rest))
    else:
        _with_itself(start, half, shift, halved_from, triangles, squares, runs, apart)
        _with_itself(start + rest, half, shift, halved_from, triangles, squares, runs, apart)
        squares.append(Part(start + half + shift, rest, start, rest, False, runs, apart, apart))


def _with_all(start: int, rows: int, key_start: int, keys: int) -> Part:
    """A run of rows with a run of keys, in two blocks where that is possible."""
    if rows % 2:
        return Part(start, rows, key_start, keys)
    return Part(start, rows // 2, key_start, keys, blocks=2, step=rows // 2)


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
    if segments.parts is not None and _has_forest_kernel(query, key, segments, sliding_window, dropout):
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return ForestAttention.apply(*_of_one_type(query, key, value), *segments.parts, scale), None  # type: ignore[no-untyped-call]
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


def _has_forest_kernel(query: Tensor, key: Tensor, segments: Layout, window: int | None, dropout: float) -> bool:
    """Whether `ForestAttention` computes this: on a CPU, nothing dropped, no window that cuts anything off."""
    return (
        query.device.type == "cpu"
        and dropout == 0.0
        and (window is None or window >= segments.longest)
        and query.dtype == key.dtype
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
