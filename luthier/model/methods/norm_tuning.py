"""Norm tuning: only the normalization layers learn (Zhao et al. 2023, https://arxiv.org/abs/2312.11420), by peft."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.method import Apply
from luthier.model.methods._peft_adapter import PeftMethod

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """Norm tuning has no settings of its own: every norm learns, the last one too."""

    name: str = "norm_tuning"
    recommended_learning_rate: ClassVar[float] = 1e-3  # few weights of size one bear large steps


class NormTuning(PeftMethod):
    """Trains a copy of every norm; saved in peft's format (ln_tuning)."""

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's LNTuningConfig with the model's own norms.

        Raises:
            ModelError: the model has no norm with weights.
        """
        from peft import LNTuningConfig

        names = sorted({name.split(".")[-1] for name, module in model.named_modules() if _is_norm(module)})
        if not names:
            raise ModelError(
                f"{type(model).__name__} has no normalization layer with weights.", "Use method: lora or bitfit."
            )
        return LNTuningConfig(task_type="CAUSAL_LM", target_modules=names)

    def start(self, model: Any) -> None:
        """In float32 before a finished adapter is read into them."""
        from luthier.model.mixed_precision import norms_in_float32

        norms_in_float32(model)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))


def build(options: Options) -> NormTuning:
    """The method for these options."""
    return NormTuning(options)
