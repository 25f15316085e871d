"""LLaMA Pro: copies of layers are put between the model's own, start as the identity, and alone learn (Wu et al. 2024,
https://arxiv.org/abs/2401.02415)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

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
from luthier.model.methods._targets import is_linear, layer_blocks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

# the linear maps whose output is added to the stream of hidden states, as the families name them
LAST_MAPS = ("o_proj", "down_proj", "c_proj", "dense", "dense_4h_to_h", "out_proj", "fc_out", "fc2", "wo", "w2")


class Options(MethodOptions):
    """How many layers are added."""

    name: str = "llama_pro"
    num_new_layers: int | None = Field(
        None, ge=1, description="Layers to add, spread evenly; unset: one for every four (the paper: 8 to 32)."
    )

    recommended_learning_rate: ClassVar[float] = 2e-4  # the paper's, for pretraining the new layers


class LlamaPro(Method):
    """Trains added layers; saved as a whole model with that many more."""

    saves: Literal["model"] = "model"

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Add the layers and freeze the others.

        Raises:
            ModelError: more layers to add than there are, or a family whose layers can't be made the identity.
        """
        refuse_new_tokens(self.options.name, how)
        before = _sample(model)
        _own_config(model)
        own = layer_blocks(model)
        after = self._places(len(own))
        layers: list[nn.Module] = []
        new: list[nn.Module] = []
        for index, layer in enumerate(own):
            layers.append(layer)
            if index in after:
                new.append(_identity_copy(layer, model))
                layers.append(new[-1])
        _set_layers(model, layers, after)
        if before is not None and not (_sample(model) - before).abs().max() <= 1e-5 * before.abs().max():
            raise ModelError(
                f"the layers of {type(model).__name__} could not be made the identity, so adding some would change the model.",
                "Use method: lora or freeze.",
            )
        model.requires_grad_(False)
        for layer in new:
            layer.requires_grad_(True)
        trainable_to_float32(model, how.pure_bf16)
        grown: nn.Module = model
        return grown

    def _places(self, count: int) -> set[int]:
        """After which layers a new one comes: spread evenly, the last one included."""
        wanted = self.options.num_new_layers or max(1, count // 4)
        if wanted > count:
            raise ModelError(
                f"method.num_new_layers is {wanted}, but the model has {count} layers.", "Add at most as many."
            )
        return {round((index + 1) * count / wanted) - 1 for index in range(wanted)}

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the whole model, which loads in plain transformers."""
        save_whole_model(model, folder)

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the whole model back."""
        load_whole_model(model, folder)


def _own_config(model: PreTrainedModel) -> None:
    """Give a model a config of its own: it was built from one that others read."""
    shared = (model.config, model.config.get_text_config())
    copied = copy.deepcopy(model.config)
    own = {id(shared[1]): copied.get_text_config(), id(shared[0]): copied}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if id(config) in own:
            module.config = own[id(config)]


def _identity_copy(layer: nn.Module, model: PreTrainedModel) -> nn.Module:
    """A copy of a layer that adds nothing to the hidden states: the last maps of attention and feed-forward are zero."""
    import torch

    # its parts must go on reading the model's own config, which says how to attend
    configs = (model.config, model.config.get_text_config())
    made = copy.deepcopy(layer, {id(config): config for config in configs})
    last = [module for name, module in made.named_modules() if name.split(".")[-1] in LAST_MAPS and is_linear(module)]
    if len(last) < 2:
        raise ModelError(
            f"the last linear maps of attention and feed-forward were not found in a layer of {type(model).__name__}.",
            "Use method: lora or freeze.",
        )
    with torch.no_grad():
        for module in last:
            for parameter in module.parameters():
                parameter.zero_()
    return made


def _set_layers(model: PreTrainedModel, layers: list[nn.Module], after: set[int]) -> None:
    """Put the longer list into the model, renumbered, with a config that says so."""
    from torch import nn

    text: Any = model.config.get_text_config()
    count: int = text.num_hidden_layers
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == count and child[0] is layers[0]:
                setattr(module, name, nn.ModuleList(layers))
    for index, layer in enumerate(layers):
        for part in layer.modules():
            if hasattr(part, "layer_idx"):
                part.layer_idx = index  # type: ignore[assignment]
    for name, value in vars(text).items():
        if isinstance(value, list) and len(value) == count:  # one entry a layer, such as layer_types
            setattr(text, name, [item for index, item in enumerate(value) for _ in range(1 + (index in after))])
    text.num_hidden_layers = len(layers)


def _sample(model: PreTrainedModel) -> Any:
    """float32 logits of a few tokens; None for a skeleton without weights."""
    import torch

    if model.device.type == "meta":
        return None
    with torch.no_grad():
        return model(input_ids=torch.arange(1, 6, device=model.device)[None], use_cache=False).logits.float()


def build(options: Options) -> LlamaPro:
    """The method for these options."""
    return LlamaPro(options)
