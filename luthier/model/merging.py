"""An adapter folded into its base, and proof that the result is the same model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
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
    from luthier.model.bottleneck import bottlenecks

    if bottlenecks(tuned):
        raise ModelError(
            "a bottleneck adapter can't be merged into its base: its activation function makes it no sum of weights.",
            "Export it with --format adapter.",
        )
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


@contextmanager
def without_adapter(tuned: Any) -> Iterator[None]:
    """Within it, a tuned model answers as its base does."""
    from luthier.model.bottleneck import without_bottlenecks

    with without_bottlenecks(tuned), tuned.disable_adapter() if hasattr(tuned, "disable_adapter") else nullcontext():
        yield


def sample_logits(model: Any, token_ids: list[int]) -> Tensor:
    """float32 logits [L, V] of a model over a few tokens."""
    import torch

    with torch.inference_mode():
        logits: Tensor = model(input_ids=torch.tensor([token_ids], device=model.device)).logits[0].float().cpu()
    return logits


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference of two logits."""
    return float((first - second).abs().max())
