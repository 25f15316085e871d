"""The part of a causal language model below its head."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedModel


def backbone_of(model: PreTrainedModel) -> Any:
    """What gives the last hidden states: transformers' own `get_decoder()`, but for families (Llama 4) of which that is the
    model with its head; then what stands below that head."""
    found: Any = model.get_decoder()
    below = getattr(found, "model", None)
    return below if isinstance(below, PreTrainedModel) and found.get_output_embeddings() is not None else found
