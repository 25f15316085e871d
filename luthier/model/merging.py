"""An adapter folded into its base, and proof that the result is the same model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import ModelError

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel


def merge(tuned: Any) -> PreTrainedModel:
    """Fold a peft model's adapter into its base; a model without an adapter is returned as it is.

    Raises:
        ModelError: a kind of adapter that can't be merged.
    """
    if not hasattr(tuned, "merge_and_unload"):
        if hasattr(tuned, "peft_config"):
            kind = str(tuned.active_peft_config.peft_type.value).lower()
            raise ModelError(
                f"an adapter of {kind} can't be merged into its base: its virtual tokens stand beside the weights, not in them.",
                "Export it with --format adapter.",
            )
        return tuned
    merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    return merged


def sample_logits(model: Any, token_ids: list[int]) -> Tensor:
    """float32 logits [L, V] of a model over a few tokens."""
    import torch

    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([token_ids], device=model.device)).logits[0].float().cpu()
    return logits


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference of two logits."""
    return float((first - second).abs().max())
