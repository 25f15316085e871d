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
from luthier.model.method import Apply, Method, refuse_new_tokens, trainable_to_float32
from luthier.model.methods._own_adapter import hung_shapes, hung_weights, put_hung_weights, read_options, write_own
from luthier.model.methods._peft_adapter import read_adapter
from luthier.model.methods._targets import layer_blocks

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

Activation = Literal["relu", "gelu", "silu", "tanh"]
FEED_FORWARD = (
    "mlp",
    "feed_forward",
    "ffn",
    "ff",
    "output.dense",
)  # BERT's has no module of its own, only its last map
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
    activation: Activation = Field("relu", description="Between its two linear maps.")
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
        if how.adapter is not None and model.device.type != "meta":
            self.load(model, how.adapter)
        trainable_to_float32(model, how.pure_bf16)
        extended: nn.Module = model
        return extended

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the bottlenecks and what they hang on."""
        write_own(folder, "adapter", self.options, hung_weights(model), self._how or Apply(seed=0))

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the bottlenecks' weights back. Raises ModelError for those of another model."""
        put_hung_weights(model, read_adapter(folder), folder)


def hang(model: PreTrainedModel, options: Options, gated: bool = False) -> None:
    """Hang fresh bottlenecks on a model, each with a learnt gate if wanted. Raises ModelError if its modules are not found."""
    from luthier.model.bottleneck import Bottleneck, hang_on

    hidden: int = model.config.get_text_config().hidden_size
    width = max(1, int(hidden / options.reduction_factor))
    parallel = options.placement == "parallel"
    # beside a feed-forward block stands only what sees what goes into it
    whole = tuple(name for name in FEED_FORWARD if not parallel or "." not in name)
    places = (ATTENTION, whole) if options.placement == "houlsby" else (whole,)
    for block in layer_blocks(model):
        for names in places:
            inside = dict(block.named_modules())
            module: Any = next((inside[name] for name in names if name in inside), None)
            if module is None:
                raise ModelError(
                    f"a layer of {type(model).__name__} has no module called {' or '.join(names)} to hang an adapter on.",
                    f"It has: {', '.join(name for name, _ in block.named_children())}. Use method: lora.",
                )
            made = Bottleneck(hidden, width, hidden, options.activation, options.scale, parallel, gated=gated)
            hang_on(module, made)


def attach(model: PreTrainedModel, folder: Path) -> PreTrainedModel:
    """A base model with the saved bottlenecks in it, for use. Raises ModelError for those of another model."""
    method = Adapter(Options(**read_options(folder)))
    hang(model, method.options)
    method.load(model, folder)
    return model.eval()


def shapes(model: PreTrainedModel, folder: Path) -> dict[str, tuple[int, ...]]:
    """What a saved adapter of these options holds for a model (without weights), which it changes."""
    hang(model, Options(**read_options(folder)))
    return hung_shapes(model)


def build(options: Options) -> Adapter:
    """The method for these options."""
    return Adapter(options)
