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

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Put a copy that learns in place of every norm.

        Raises:
            ModelError: the model has no norm with weights.
        """
        from peft.tuners.ln_tuning.layer import LNTuningLayer

        tuned = super().apply(model, how)
        for module in tuned.modules():
            if isinstance(module, LNTuningLayer):
                module.register_forward_hook(_keep_precision)
        return tuned


def _keep_precision(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    """Norms in float32 would hand float32 to the 16-bit layers behind them."""
    return output.to(arguments[0].dtype)


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False))


def build(options: Options) -> NormTuning:
    """The method for these options."""
    return NormTuning(options)
