"""BitFit: only the bias terms learn (Ben Zaken et al. 2022, https://arxiv.org/abs/2106.10199)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.method import (
    Apply,
    Method,
    load_whole_model,
    refuse_new_tokens,
    save_whole_model,
    trainable_to_float32,
)

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """BitFit has no settings of its own: every bias learns."""

    name: str = "bitfit"
    recommended_learning_rate: ClassVar[float] = 1e-3  # the paper searches 1e-4 to 1e-2


class BitFit(Method):
    """Trains every bias; saved as a whole model, since biases are weights of the base."""

    saves: Literal["model"] = "model"

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    @property
    def trains_parts(self) -> bool:
        """Biases, beside weights."""
        return True

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Freeze all but the biases.

        Raises:
            ModelError: the model has none.
        """
        refuse_new_tokens(self.options.name, how)
        model.requires_grad_(False)
        biases = [parameter for name, parameter in model.named_parameters() if name.split(".")[-1].endswith("bias")]
        if not biases:
            raise ModelError(
                f"{type(model).__name__} has no bias terms, so bitfit has nothing to train.",
                "Use method: norm_tuning, which trains as few weights, or method: lora.",
            )
        for bias in biases:
            bias.requires_grad_(True)
        trainable_to_float32(model, how.pure_bf16)
        marked: nn.Module = model
        return marked

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the whole model, so that it loads in plain transformers."""
        save_whole_model(model, folder)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the whole model back."""
        load_whole_model(model, folder)


def build(options: Options) -> BitFit:
    """The method for these options."""
    return BitFit(options)
