"""Prompt learning: trained vectors before every row, put there as peft's own forward does.

The Scorer reads hidden states of the backbone, below peft's wrapper, so what the wrapper adds is added here.

Shapes: R rows, L longest row, P virtual tokens, H hidden width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from luthier.foundation.errors import ModelError
from luthier.scoring.backbone import backbone_of
from luthier.scoring.padded import PaddedRows

WHY_PADDED = "virtual tokens stand before every row"


def has_virtual_tokens(model: Any) -> bool:
    """Whether a model is a peft wrapper whose adapter is virtual tokens."""
    return hasattr(model, "peft_config") and bool(model.active_peft_config.is_prompt_learning)


def is_prefix(model: Any) -> bool:
    """Whether the virtual tokens are keys and values of every layer instead of embeddings."""
    return bool(model.active_peft_config.peft_type == "PREFIX_TUNING")


def refuse_checkpointed_prefix(model: Any, checkpointed: bool) -> None:
    """Raise ModelError where gradient checkpointing would lose the prefix: it travels as a cache, which that forbids."""
    if is_prefix(model) and checkpointed:
        raise ModelError(
            "prefix tuning puts keys and values into the model's cache, which gradient checkpointing switches off.",
            "Set training.gradient_checkpointing to false, or use method: prompt_tuning.",
        )


def hidden_behind_virtual_tokens(model: Any, rows: PaddedRows, **arguments: Any) -> tuple[Any, Tensor, Tensor]:
    """A forward pass of the backbone with the virtual tokens before every row.

    Returns:
        the backbone's output; the last hidden states [R, L, H] of the rows' own tokens; the attention mask it saw.
    """
    count: int = model.active_peft_config.num_virtual_tokens
    size = rows.input_ids_RL.shape[0]
    mask = torch.cat([rows.attention_mask_RL.new_ones(size, count), rows.attention_mask_RL], dim=1)
    positions_RL = rows.position_ids_RL + count
    backbone = backbone_of(model.get_base_model())
    prompt = model.get_prompt(batch_size=size)
    if is_prefix(model):
        output = backbone(
            input_ids=rows.input_ids_RL,
            attention_mask=mask,
            position_ids=positions_RL,
            past_key_values=prompt,
            use_cache=True,
            **arguments,
        )
        return output, output.last_hidden_state, rows.attention_mask_RL
    embeddings = model.word_embeddings(rows.input_ids_RL)
    own_positions = torch.arange(count, device=positions_RL.device).expand(size, -1)
    output = backbone(
        inputs_embeds=torch.cat([prompt.to(embeddings.dtype), embeddings], dim=1),
        attention_mask=mask,
        position_ids=torch.cat([own_positions, positions_RL], dim=1),
        use_cache=False,
        **arguments,
    )
    return output, output.last_hidden_state[:, count:], mask
