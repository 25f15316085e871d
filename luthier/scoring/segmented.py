"""The segmented route: a packed row through the backbone once, its hidden states where they are read.

Shapes: T row length, P places that are read, U different ones of them, H hidden width.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
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
    """The backbone's output, its last hidden states [U, H] at the different ones of some rows, and which of them each of
    the P is, [P].

    Args:
        trunk: the states that a batch which knows their rows begins with, instead of its tokens.
        independent_length: see `luthier.scoring.dynamic_positions`.
        arguments: for the backbone; where something else is asked of it (a router's logits), all layers compute all rows.
    """
    backbone: Any = backbone_of(model)
    rows_U, of_place_P = torch.unique(rows_P, return_inverse=True)
    segments, ids_T, positions_T, trunk_rows_T = (
        batch.segments, batch.input_ids_T, batch.position_ids_T, batch.trunk_rows_T
    )  # fmt: skip
    if not arguments and len(rows_U) and int(positions_T.max()) < independent_length:
        segments, kept = up_to_the_last_read(segments, rows_U.tolist())
        if sum(map(len, kept)) < len(ids_T):
            kept_T = torch.cat([torch.arange(rows.start, rows.stop, device=ids_T.device) for rows in kept])
            rows_U = torch.searchsorted(kept_T, rows_U)
            ids_T, positions_T = ids_T[kept_T], positions_T[kept_T]
            trunk_rows_T = None if trunk_rows_T is None else trunk_rows_T[kept_T.to(trunk_rows_T.device)]
    layout = Layout.of(segments, rows_U if is_narrow(backbone) and not arguments else None)
    arguments |= {"position_ids": positions_T[None], "use_cache": False, "segments": layout}
    if trunk is not None and trunk_rows_T is not None:
        states_TH = trunk.of(trunk_rows_T, backbone.layers[trunk.layer])
        with above(model, trunk.layer):
            output = backbone(inputs_embeds=states_TH[None], **arguments)
    else:
        output = backbone(input_ids=ids_T[None], **arguments)
    hidden: Tensor = output.last_hidden_state[0]
    return output, hidden.index_select(0, rows_U) if layout.last is None else hidden, of_place_P


def up_to_the_last_read(segments: Sequence[Segment], rows: Sequence[int]) -> tuple[tuple[Segment, ...], list[range]]:
    """A row without the tokens that no token which is read comes after in its sequence: the last one of an answer, which
    predicts nothing. Nobody sees them.

    Args:
        rows: those that are read, ascending.

    Returns:
        The segments of the shorter row, and the ranges of the whole row that it consists of.
    """
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
