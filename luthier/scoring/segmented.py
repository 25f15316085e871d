"""The segmented route: a packed row through the backbone once, its hidden states where they are read.

Shapes: T row length, P places that are read, U different ones of them, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from luthier.data.batch import Batch
from luthier.scoring.attention import Layout
from luthier.scoring.fused.narrowing import is_narrow


def hidden_at(model: PreTrainedModel, batch: Batch, rows_P: Tensor, **arguments: Any) -> tuple[Any, Tensor, Tensor]:
    """The backbone's output, its last hidden states [U, H] at the different ones of some rows, and which of them each of
    the P is, [P].

    Args:
        arguments: for the backbone.
    """
    backbone: Any = model.get_decoder()
    rows_U, of_place_P = torch.unique(rows_P, return_inverse=True)
    output = backbone(
        input_ids=batch.input_ids_T[None],
        position_ids=batch.position_ids_T[None],
        use_cache=False,
        segments=Layout.of(batch.segments, rows_U),
        **arguments,
    )
    hidden: Tensor = output.last_hidden_state[0]
    return output, hidden if is_narrow(backbone) else hidden.index_select(0, rows_U), of_place_P
