"""Freeze tuning: some layers or named modules learn, the rest stays as it is."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.foundation.registry import nearest
from luthier.model.method import Apply, Method, load_whole_model, save_whole_model, trainable_to_float32
from luthier.model.methods._targets import layer_blocks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """Which layers and modules learn."""

    name: str = "freeze"
    trainable_layers: int = Field(
        2, description="The last n layers learn; negative: the first n; 0: none (a head that classifies learns anyway)."
    )
    trainable_modules: list[str] = Field(
        default_factory=list,
        description="Further modules that learn, by name, part of a name or pattern: lm_head, self_attn, model.layers.3.*",
    )

    recommended_learning_rate: ClassVar[float] = 5e-5


class Freeze(Method):
    """Trains whole layers and named modules."""

    saves: Literal["model"] = "model"

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Freeze all, then free the chosen.

        Raises:
            ModelError: more layers than there are, a name that matches nothing, or nothing chosen and no head that learns.
        """
        model.requires_grad_(False)
        for layer in self._layers(model):
            layer.requires_grad_(True)
        for name in self.options.trainable_modules:
            for module in named_modules_like(model, name):
                module.requires_grad_(True)
        if how.new_token_ids:
            # a row can't require a gradient by itself: with new tokens the whole embedding learns
            model.get_input_embeddings().requires_grad_(True)
            model.get_output_embeddings().requires_grad_(True)
        if how.head is None and not any(parameter.requires_grad for parameter in model.parameters()):
            raise ModelError(
                "method.trainable_layers is 0 and method.trainable_modules is empty, so nothing would learn.",
                "Set one of them.",
            )
        trainable_to_float32(model, how.pure_bf16)
        marked: nn.Module = model
        return marked

    def _layers(self, model: PreTrainedModel) -> list[nn.Module]:
        blocks = layer_blocks(
            model, "Name the modules in method.trainable_modules and set method.trainable_layers to 0."
        )
        wanted = self.options.trainable_layers
        if abs(wanted) > len(blocks):
            raise ModelError(
                f"method.trainable_layers is {wanted}, but the model has {len(blocks)} layers.",
                "Choose at most as many, or method: full.",
            )
        return blocks[len(blocks) - wanted :] if wanted >= 0 else blocks[:-wanted]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the whole model, frozen weights included, so that it loads in plain transformers."""
        save_whole_model(model, folder)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the whole model back."""
        load_whole_model(model, folder)


def named_modules_like(model: nn.Module, wanted: str) -> list[nn.Module]:
    """Modules whose dotted name is, contains as whole parts, or matches `wanted`.

    Raises:
        ModelError: none; the names that exist are listed.
    """
    found = [
        module
        for name, module in model.named_modules()
        if name
        and (fnmatch.fnmatchcase(name, wanted) or f".{wanted}." in f".{name}.")
        and any(True for _ in module.parameters())
    ]
    if not found:
        kinds = sorted(
            {name.split(".")[-1] for name, _ in model.named_modules() if name and not name.split(".")[-1].isdigit()}
        )
        close = nearest(wanted, kinds)
        raise ModelError(
            f"method.trainable_modules names {wanted!r}, which matches no module of {type(model).__name__}.",
            (f"Did you mean {' or '.join(close)}? " if close else "") + f"There are: {', '.join(kinds)}.",
        )
    return found


def build(options: Options) -> Freeze:
    """The method for these options."""
    return Freeze(options)
