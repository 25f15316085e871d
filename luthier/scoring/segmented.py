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
from luthier.scoring.backbone import backbone_of
from luthier.scoring.fused.narrowing import is_narrow
from luthier.scoring.trunk import Trunk, above


def hidden_at(
    model: PreTrainedModel, batch: Batch, rows_P: Tensor, trunk: Trunk | None = None, **arguments: Any
) -> tuple[Any, Tensor, Tensor]:
    """The backbone's output, its last hidden states [U, H] at the different ones of some rows, and which of them each of
    the P is, [P].

    Args:
        trunk: the states that a batch which knows their rows begins with, instead of its tokens.
        arguments: for the backbone; where something else is asked of it (a router's logits), all layers compute all rows.
    """
    backbone: Any = backbone_of(model)
    rows_U, of_place_P = torch.unique(rows_P, return_inverse=True)
    layout = Layout.of(batch.segments, rows_U if is_narrow(backbone) and not arguments else None)
    arguments |= {"position_ids": batch.position_ids_T[None], "use_cache": False, "segments": layout}
    if trunk is not None and batch.trunk_rows_T is not None:
        states_TH = trunk.of(batch.trunk_rows_T, backbone.layers[trunk.layer])
        with above(model, trunk.layer):
            output = backbone(inputs_embeds=states_TH[None], **arguments)
    else:
        output = backbone(input_ids=batch.input_ids_T[None], **arguments)
    hidden: Tensor = output.last_hidden_state[0]
    return output, hidden.index_select(0, rows_U) if layout.last is None else hidden, of_place_P
