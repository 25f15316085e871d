"""The two passes of decoding as transformers' models meet them: an attention function that keeps and finds keys itself.

The pass travels as a keyword argument of the forward call, as the segments of the segmented route do.

Shapes: T tokens of a row, A answers that are being made, H query heads, K key-value heads, D head width, S slots.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from luthier.scoring.attention import UnsupportedAttentionError, refuse_unknown
from luthier.scoring.decoding.blocks import attend, put_together
from luthier.scoring.decoding.store import Beginning, Slots

NAME = "luthier_decoding"


class Pass(Protocol):
    """What computes a layer's attention."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """[1, T, H, D] of queries [1, H, T, D], keys and values [1, K, T, D]."""
        ...


@dataclass(frozen=True, slots=True)
class Stretch:
    """New tokens [start, end) of a row and where their keys go: a beginning, or a slot."""

    start: int
    end: int
    into: Beginning | int


@dataclass(frozen=True, slots=True)
class Below:
    """Rows [start, end) that attend to all of a beginning."""

    start: int
    end: int
    beginning: Beginning


class Prefill:
    """Prompts, or what of them is not there yet, end to end in one row.

    Args:
        stretches: cover the row; each attends causally to itself.
        below: beginnings that stretches go on with, computed in this pass or before.
    """

    def __init__(self, slots: Slots, stretches: Sequence[Stretch], below: Sequence[Below]) -> None:
        self._slots = slots
        self._stretches = stretches
        self._below = below

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Pass`."""
        outputs, sums = [], []
        for stretch in self._stretches:
            own = slice(stretch.start, stretch.end)
            own_key, own_value = key[:, :, own], value[:, :, own]
            if isinstance(stretch.into, Beginning):
                stretch.into.put(layer, own_key, own_value)
            else:
                self._slots.put_prompt(layer, stretch.into, own_key, own_value)
            output, sum_ = attend(query[:, :, own], own_key, own_value, scale, causal=True)
            outputs.append(output)
            sums.append(sum_)
        output_THD, sum_TH = torch.cat(outputs, dim=1), torch.cat(sums, dim=1)
        _add_beginnings(output_THD, sum_TH, self._below, layer, query, scale)
        return output_THD


class NextToken:
    """One token more of every answer.

    Args:
        slots_A: each answer's slot.
        below: beginnings that consecutive answers go on with.
    """

    def __init__(self, slots: Slots, slots_A: Tensor, below: Sequence[Below]) -> None:
        self._slots = slots
        self._slots_A = slots_A
        self._below = below
        lengths_S = torch.tensor(slots.lengths, device=slots_A.device)
        self._places_A = lengths_S.index_select(0, slots_A)
        count = len(slots_A)
        self._length = int(self._places_A.max()) + 1
        row_of_slot_S = torch.zeros(len(slots), dtype=torch.long, device=slots_A.device)
        row_of_slot_S[slots_A] = torch.arange(count, device=slots_A.device)
        in_order = count == len(slots) and bool((slots_A[1:] > slots_A[:-1]).all())
        self._row_of_slot_S = None if in_order else row_of_slot_S
        # a slot that nobody has attends to its first token, whatever that is: nobody reads the result
        seen_S = torch.zeros_like(lengths_S).index_copy_(0, slots_A, self._places_A)
        place_L = torch.arange(self._length, device=slots_A.device)
        self._bias = torch.zeros(len(slots), 1, 1, self._length, device=slots_A.device).masked_fill_(
            (place_L[None] > seen_S[:, None])[:, None, None], -math.inf
        )

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """See `Pass`."""
        self._slots.put_next(layer, self._slots_A, self._places_A, key, value)
        keys, values = self._slots.filled(layer, self._length)
        heads, width = query.shape[1], query.shape[3]
        query_AHD = query[0].transpose(0, 1)
        if self._row_of_slot_S is not None:
            query_AHD = query_AHD.index_select(0, self._row_of_slot_S)
        grouped = query_AHD.reshape(len(self._slots), keys.shape[1], heads // keys.shape[1], width)
        output, sums = attend(grouped, keys, values, scale, bias=self._bias.to(query.dtype))
        # the heads of a group stand where queries do: [S, K, H / K, D]
        output = output.transpose(1, 2).reshape(len(self._slots), heads, -1)
        sums = sums.transpose(1, 2).reshape(len(self._slots), heads)
        if self._row_of_slot_S is not None:
            output, sums = output.index_select(0, self._slots_A), sums.index_select(0, self._slots_A)
        _add_beginnings(output[None], sums[None], self._below, layer, query, scale)
        return output[None]


def _add_beginnings(
    output_THD: Tensor, sum_TH: Tensor, below: Sequence[Below], layer: int, query: Tensor, scale: float
) -> None:
    """Let rows attend to the beginnings before them, in place."""
    for part in below:
        rows = slice(part.start, part.end)
        more, more_sum = attend(
            query[:, :, rows], part.beginning.keys[layer], part.beginning.values[layer], scale, causal=False
        )
        put_together(output_THD[:, rows], sum_TH[:, rows], more, more_sum)


def decoding_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    decoding: Pass | None = None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """A layer's attention in a pass; `luthier.scoring.decoding.fitness` has seen to it that no window cuts anything off.

    Raises:
        UnsupportedAttentionError: a mask, or an argument that changes the mathematics in a way not known here.
    """
    if decoding is None:
        raise UnsupportedAttentionError("no pass reached the attention: the model does not pass keyword arguments on")
    refuse_unknown({**others, "attention_mask": attention_mask}, getattr(module, "is_causal", True))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    # rotated queries may have another layout than keys, or, under autocast, another precision than values
    return decoding.attend(module.layer_idx, query.to(value.dtype), key.to(value.dtype), value, scale), None  # type: ignore[arg-type]


@contextmanager
def decoding_attention_in(model: PreTrainedModel) -> Iterator[None]:
    """The model with this attention for the time of a pass, and its own afterwards."""
    own = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


AttentionInterface.register(NAME, decoding_attention)
