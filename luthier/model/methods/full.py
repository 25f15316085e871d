"""Full fine-tuning: every weight learns."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from luthier.config.sections import MethodOptions
from luthier.model.method import Apply, Method, load_whole_model, save_whole_model, trainable_to_float32

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """Full fine-tuning has no settings of its own."""

    name: str = "full"
    recommended_learning_rate: ClassVar[float] = 2e-5


class Full(Method):
    """Trains all parameters."""

    saves: Literal["model"] = "model"

    def __init__(self, options: Options) -> None:
        self.options = options

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Every parameter requires a gradient."""
        model.requires_grad_(True)
        trainable_to_float32(model, how.pure_bf16)
        everything: nn.Module = model
        return everything

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the whole model."""
        save_whole_model(model, folder)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the whole model back."""
        load_whole_model(model, folder)


def build(options: Options) -> Full:
    """The method for these options."""
    return Full(options)
