"""Bottleneck adapters: small networks after (or beside) a layer's modules (Houlsby et al. 2019,
https://arxiv.org/abs/1902.00751; Pfeiffer et al. 2021, https://arxiv.org/abs/2005.00247; parallel: He et al. 2022,
https://arxiv.org/abs/2110.04366).

Saved as adapter_model.safetensors, under the weights' names in the model, and adapter_config.json, which holds these
options, the base's name, and `luthier_method: adapter`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json, write_json
from luthier.model.inspection import ADAPTER_CONFIG, OWN_METHOD
from luthier.model.method import Apply, Method, refuse_new_tokens, trainable_to_float32
from luthier.model.methods._peft_adapter import read_adapter
from luthier.model.methods._targets import layer_blocks

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

FEED_FORWARD = ("mlp", "feed_forward", "ffn", "ff")
ATTENTION = ("self_attn", "attn", "self_attention", "attention")


class Options(MethodOptions):
    """Where the bottlenecks stand, and their shape."""

    name: str = "adapter"
    placement: Literal["pfeiffer", "houlsby", "parallel"] = Field(
        "pfeiffer",
        description="After the feed-forward block of every layer; after attention too (houlsby); or beside the "
        "feed-forward block, reading its input (parallel).",
    )
    reduction_factor: float = Field(16, ge=1, description="The model's hidden size divided by the bottleneck's width.")
    activation: Literal["relu", "gelu", "silu", "tanh"] = Field("relu", description="Between its two linear maps.")
    scale: float = Field(1.0, gt=0, description="What it adds is multiplied by this (parallel: 4 in the paper).")

    recommended_learning_rate: ClassVar[float] = 3e-4  # Houlsby et al. search 3e-5 to 3e-3


class Adapter(Method):
    """Trains bottlenecks; ours, so neither peft nor transformers loads them."""

    saves: Literal["adapter"] = "adapter"

    def __init__(self, options: Options) -> None:
        self.options: Options = options
        self._how: Apply | None = None

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Freeze the model and hang a bottleneck on every chosen module.

        Raises:
            ModelError: the layers, or the modules in them, are not found.
        """
        import torch

        refuse_new_tokens(self.options.name, how)
        self._how = how
        model.requires_grad_(False)
        torch.manual_seed(how.seed)
        hang(model, self.options)
        trainable_to_float32(model, how.pure_bf16)
        extended: nn.Module = model
        return extended

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the bottlenecks and what they hang on."""
        from safetensors.torch import save_file

        save_file(_own_weights(model), folder / "adapter_model.safetensors", metadata={"format": "pt"})
        how = self._how or Apply(seed=0)
        settings = self.options.model_dump() | {"name": "adapter"}  # however it was registered
        base = {"base_model_name_or_path": how.base_name, "revision": how.revision}
        write_json(folder / ADAPTER_CONFIG, {OWN_METHOD: "adapter", "format_version": 1, **base, "options": settings})

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the bottlenecks' weights back. Raises ModelError for those of another model."""
        own, saved = _own_weights(model), read_adapter(folder)
        if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in saved.items()}:
            strange = sorted(set(own) ^ set(saved)) or [n for n, value in own.items() if value.shape != saved[n].shape]
            raise ModelError(
                f"the adapter in {folder} is made for another model: {strange[0]} does not fit.",
                "Name the model it was trained on in base_model_name_or_path of its adapter_config.json.",
            )
        model.load_state_dict(saved, strict=False)


def hang(model: PreTrainedModel, options: Options) -> None:
    """Hang fresh bottlenecks on a model. Raises ModelError if its modules are not found."""
    from luthier.model.bottleneck import Bottleneck, hang_on

    hidden: int = model.config.get_text_config().hidden_size
    width = max(1, int(hidden / options.reduction_factor))
    places = (ATTENTION, FEED_FORWARD) if options.placement == "houlsby" else (FEED_FORWARD,)
    for block in layer_blocks(model):
        for names in places:
            module: Any = next((getattr(block, name) for name in names if hasattr(block, name)), None)
            if module is None:
                raise ModelError(
                    f"a layer of {type(model).__name__} has no module called {' or '.join(names)} to hang an adapter on.",
                    f"It has: {', '.join(name for name, _ in block.named_children())}. Use method: lora.",
                )
            made = Bottleneck(hidden, width, options.activation, options.scale, options.placement == "parallel")
            weight = next(module.parameters())
            hang_on(module, made.to(device=weight.device, dtype=weight.dtype))


def attach(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A base model with the saved bottlenecks in it, for use. Raises ModelError for those of another model."""
    method = Adapter(Options(**read_json(folder / ADAPTER_CONFIG)["options"]))
    hang(model, method.options)
    method.load(model, folder)
    return model.eval()


def _own_weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.cpu().contiguous() for name, value in model.state_dict().items() if ".bottleneck." in name}


def build(options: Options) -> Adapter:
    """The method for these options."""
    return Adapter(options)
