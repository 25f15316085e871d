"""The padded route: the forest unrolled to ordinary right-padded rows, through the model's own forward.

It is the reference that the segmented route is measured against, and the route of every model that can't take that one.

Shapes: R rows, L longest row, N targets.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from luthier.data.batch import Batch
from luthier.scoring.attention import Layout


@dataclass(frozen=True, slots=True)
class PaddedRows:
    """Rows for an ordinary forward pass, and where each target's hidden state stands in them."""

    input_ids_RL: Tensor
    attention_mask_RL: Tensor
    position_ids_RL: Tensor
    row_N: Tensor
    column_N: Tensor


def unroll(batch: Batch, pad_token_id: int = 0) -> PaddedRows:
    """One row for each leaf of the forest: its ancestors' tokens, then its own. A shared token is computed in each row."""
    layout = Layout.of(batch.segments)
    parents = {segment.parent for segment in batch.segments}
    leaves = [index for index in range(len(batch.segments)) if index not in parents]
    paths = [(*layout.ancestors[leaf], leaf) for leaf in leaves]
    # row positions of each path's tokens in the packed row
    sources = [
        torch.cat([torch.arange(batch.segments[i].start, batch.segments[i].end) for i in path]).to(
            batch.input_ids_T.device
        )
        for path in paths
    ]
    longest = max(len(source) for source in sources)
    rows = len(paths)
    input_ids_RL = batch.input_ids_T.new_full((rows, longest), pad_token_id)
    mask_RL = batch.input_ids_T.new_zeros((rows, longest))
    positions_RL = batch.input_ids_T.new_zeros((rows, longest))
    row_T = torch.full_like(batch.input_ids_T, -1)
    column_T = torch.full_like(batch.input_ids_T, -1)
    for row, source in enumerate(sources):
        length = len(source)
        input_ids_RL[row, :length] = batch.input_ids_T[source]
        mask_RL[row, :length] = 1
        positions_RL[row, :length] = batch.position_ids_T[source]
        # a token shared by several rows is read in the last of them: its hidden state is the same in all
        row_T[source] = row
        column_T[source] = torch.arange(length, device=source.device)
    return PaddedRows(
        input_ids_RL, mask_RL, positions_RL, row_T[batch.source_positions_N], column_T[batch.source_positions_N]
    )
