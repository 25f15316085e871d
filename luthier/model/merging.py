"""An adapter folded into its base, and proof that the result is the same model."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json
from luthier.model.inspection import ADAPTER_CONFIG, OWN_METHOD
from luthier.model.placement import input_device, without_gradients

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedModel

VIRTUAL = ("prompt_tuning", "p_tuning", "prefix_tuning")
TOKENS = "its virtual tokens stand beside the weights, not in them"
ACTIVATION = "its activation function makes it no sum of weights"


def check_mergeable(adapter: Path) -> None:
    """Refuse an adapter that can't be merged, from its config alone.

    Raises:
        ModelError: its method is no change of weights.
    """
    settings = read_json(adapter / ADAPTER_CONFIG)
    own = settings.get(OWN_METHOD)
    kind = str(settings.get("peft_type", "")).lower()
    if own is not None:
        _refuse(f"the adapter {adapter}, of method {own},", ACTIVATION)
    if kind in VIRTUAL:
        _refuse(f"the adapter {adapter}, of {kind},", TOKENS)


def merge(tuned: Any) -> PreTrainedModel:
    """Fold a peft model's adapter into its base; a model without an adapter is returned as it is.

    Raises:
        ModelError: a kind of adapter that can't be merged.
    """
    from luthier.model.bottleneck import bottlenecks

    if bottlenecks(tuned):
        _refuse("an adapter with bottlenecks", ACTIVATION)
    if not hasattr(tuned, "merge_and_unload"):
        if hasattr(tuned, "peft_config"):
            _refuse(f"an adapter of {str(tuned.active_peft_config.peft_type.value).lower()}", TOKENS)
        return tuned
    from peft.tuners.ln_tuning.layer import LNTuningLayer

    for module in tuned.modules():
        if isinstance(module, LNTuningLayer):  # a model is of one precision, its base's
            module.ln_tuning_layers.to(next(module.base_layer.parameters()).dtype)
    merged: PreTrainedModel = tuned.merge_and_unload(safe_merge=True)
    return merged


def _refuse(what: str, reason: str) -> NoReturn:
    raise ModelError(f"{what} can't be merged into its base: {reason}.", "Export it with --format adapter.")


@contextmanager
def without_adapter(tuned: Any) -> Iterator[None]:
    """Within it, a tuned model answers as its base does."""
    from luthier.model.bottleneck import without_bottlenecks

    with without_bottlenecks(tuned), tuned.disable_adapter() if hasattr(tuned, "disable_adapter") else nullcontext():
        yield


def sample_logits(model: Any, token_ids: list[int]) -> Tensor:
    """float32 logits [L, V] of a model over a few tokens."""
    import torch

    with without_gradients(model):
        logits: Tensor = model(input_ids=torch.tensor([token_ids], device=input_device(model))).logits[0].float().cpu()
    return logits


def largest_difference(first: Tensor, second: Tensor) -> float:
    """Largest absolute difference of two logits."""
    return float((first - second).abs().max())
