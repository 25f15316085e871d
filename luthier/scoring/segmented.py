"""The segmented route: a packed row through the backbone once, its hidden states where they are read.

Shapes: T row length, S tokens of it that are computed, P places that are read, U different ones of them, H hidden width.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.data.batch import Batch, Segment
from luthier.scoring.attention import Layout
from luthier.scoring.backbone import backbone_of
from luthier.scoring.fused.narrowing import is_narrow
from luthier.scoring.trunk import Trunk, above


def hidden_at(
    model: PreTrainedModel,
    batch: Batch,
    rows_P: Tensor,
    trunk: Trunk | None = None,
    independent_length: float = math.inf,
    **arguments: Any,
) -> tuple[Any, Tensor, Tensor]:
    """The backbone's output for the tokens that are computed [1, S, H], its last hidden states [U, H] at the different ones
    of some rows, and which of them each of the P is, [P].

    Args:
        trunk: the states that a batch which knows their rows goes on from, instead of computing the layers below.
        independent_length: see `luthier.scoring.dynamic_positions`; with a longer sequence all tokens are computed.
        arguments: for the backbone; where something else is asked of it (a router's logits), all layers compute all rows.
    """
    backbone: Any = backbone_of(model)
    rows_U, of_place_P = torch.unique(rows_P, return_inverse=True)
    if not arguments:
        batch, rows_U = _shortened(batch, rows_U, independent_length)
        if makes_code_for_each_shape(model):
            batch, rows_U = _filled_up(batch, rows_U)
    some = len(rows_U) < len(batch.input_ids_T)
    layout = Layout.of(batch.segments, rows_U if some and is_narrow(backbone) and not arguments else None)
    arguments |= {"position_ids": batch.position_ids_T[None], "use_cache": False, "segments": layout}
    only_above: AbstractContextManager[None] = nullcontext()
    if trunk is not None and batch.trunk_rows_T is not None:
        states_TH = trunk.of(batch.trunk_rows_T, backbone.layers[trunk.layer])
        only_above = above(model, trunk.layer, states_TH)
    with only_above:
        output = backbone(input_ids=batch.input_ids_T[None], **arguments)
    hidden: Tensor = output.last_hidden_state[0]
    return output, hidden.index_select(0, rows_U) if some and layout.last is None else hidden, of_place_P


def _shortened(batch: Batch, rows_U: Tensor, independent_length: float) -> tuple[Batch, Tensor]:
    """A batch of the tokens that are computed alone, as far as the backbone needs it, and where rows stand in that."""
    segments, kept = computed(batch, rows_U.tolist(), independent_length)
    if sum(map(len, kept)) == len(batch.input_ids_T):
        return batch, rows_U
    kept_S = torch.cat([torch.arange(rows.start, rows.stop) for rows in kept])
    trunk_rows_T = None if batch.trunk_rows_T is None else batch.trunk_rows_T[kept_S]
    kept_S = kept_S.to(rows_U.device)
    shorter = replace(
        batch,
        segments=segments,
        input_ids_T=batch.input_ids_T[kept_S],
        position_ids_T=batch.position_ids_T[kept_S],
        trunk_rows_T=trunk_rows_T,
    )
    return shorter, torch.searchsorted(kept_S, rows_U)


def makes_code_for_each_shape(model: PreTrainedModel) -> bool:
    """Whether products are oneDNN's: it makes code for every new shape of 16-bit matrices on a CPU, in 1 to 4 ms, and keeps
    1 MB of it for each of the last thousand.

    A planner's tensors, which have no values, stand for those of any device.
    """
    some = next(model.parameters())
    if some.device.type != "cpu" or type(some) is not nn.Parameter:
        return False
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else model.dtype
    return dtype.itemsize == 2


def _filled_up(batch: Batch, rows_U: Tensor) -> tuple[Batch, Tensor]:
    """A batch with one more segment, so that the numbers of its tokens and of those that are read are round: the rows of a
    run, which all differ in length, then mostly have the shapes of others before them.

    Nothing comes of the segment's tokens, and they follow no others: values and gradients stay as they are.
    """
    tokens, read = len(batch.input_ids_T), len(rows_U)
    more_read = rounded(read) - read
    more = rounded(tokens + more_read) - tokens
    if not more:
        return batch, rows_U
    filled = replace(
        batch,
        segments=(*batch.segments, Segment(tokens, tokens + more)),
        input_ids_T=torch.cat([batch.input_ids_T, batch.input_ids_T[:1].expand(more)]),
        position_ids_T=torch.cat([batch.position_ids_T, batch.position_ids_T.new_zeros(more)]),
        trunk_rows_T=None
        if batch.trunk_rows_T is None
        else torch.cat([batch.trunk_rows_T, batch.trunk_rows_T[:1].expand(more)]),
    )
    return filled, torch.cat([rows_U, torch.arange(tokens, tokens + more_read, device=rows_U.device)])


def rounded(count: int) -> int:
    """The next of eight numbers from one power of two to the next, a ninth more at most and a twentieth on average; below 128
    the next multiple of 16."""
    step = max(16, 1 << max(0, count.bit_length() - 4))
    return -(-count // step) * step


def computed(
    batch: Batch, rows: Sequence[int], independent_length: float = math.inf
) -> tuple[tuple[Segment, ...], list[range]]:
    """A batch's row without the tokens that nothing read comes after, in their segment or below it, such as an answer's last
    one, which predicts nothing: no token that is read sees them.

    Args:
        rows: those that are read, ascending. Where there are none, or a sequence is so long that it stretches the positions
            of all, nothing is left out.

    Returns:
        The segments of the shorter row, and the ranges of the whole row that it consists of.
    """
    segments = batch.segments
    stretched = math.isfinite(independent_length) and int(batch.position_ids_T.max()) >= independent_length
    if stretched or not rows:
        return segments, [range(len(batch.input_ids_T))]
    ends = [segment.start for segment in segments]
    for index in reversed(range(len(segments))):
        segment = segments[index]
        if ends[index] < segment.end:  # nothing below is read
            before = bisect_left(rows, segment.end)
            ends[index] = max(segment.start, rows[before - 1] + 1) if before else segment.start
        if ends[index] > segment.start and segment.parent is not None:
            ends[segment.parent] = segments[segment.parent].end
    shorter: list[Segment] = []
    kept: list[range] = []
    number_of: dict[int, int] = {}
    filled = 0
    for index, (segment, end) in enumerate(zip(segments, ends, strict=True)):
        if end == segment.start:
            continue
        number_of[index] = len(shorter)
        parent = None if segment.parent is None else number_of[segment.parent]
        kept.append(range(segment.start, end))
        shorter.append(Segment(filled, filled + len(kept[-1]), parent))
        filled += len(kept[-1])
    return tuple(shorter), kept
