"""What methods that join a prefix with bottlenecks have in common. Each part is made by the method that it comes from.

The saved adapter holds the finished keys and values and the bottlenecks; a checkpoint also what makes the prefix (an MLP,
gates).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.method import METHOD_STATE, Apply, Method, trainable_to_float32
from luthier.model.methods import prefix_tuning
from luthier.model.methods._own_adapter import hung_shapes, hung_weights, put_hung_weights, write_own
from luthier.model.methods._peft_adapter import read_adapter, read_state
from luthier.model.methods._prompt_learning import prompt_encoder, start_encoder

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel

PREFIX = "prefix.prompt_embeddings"


class CombinedOptions(MethodOptions):
    """The prefix's settings."""

    num_virtual_tokens: int = Field(20, ge=1, description="Learnt keys and values before every row.")
    prefix_init: Literal["small", "random", "zero"] = Field(
        "small", description="Where keys and values start, as method prefix_tuning's init."
    )
    projection: bool = Field(
        False, description="Make keys and values by an MLP that learns with them; false: train them directly."
    )


class Combination(Method):
    """A prefix, and bottlenecks that a subclass hangs; ours, so neither peft nor transformers loads them."""

    saves: Literal["adapter"] = "adapter"
    gated: ClassVar[bool] = False
    options: CombinedOptions

    def __init__(self, options: CombinedOptions) -> None:
        self.options = options
        self._how: Apply | None = None

    @abstractmethod
    def hang(self, model: PreTrainedModel) -> None:
        """Hang fresh bottlenecks on the model's modules. Raises ModelError if they are not found."""

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Put the prefix before the model's rows and the bottlenecks into it.

        Raises:
            ModelError: the model takes no prefix, or has no modules to hang bottlenecks on.
        """
        import torch

        if how.head is not None:
            raise ModelError(
                f"method {self.options.name} keeps its parts in a format of its own, which has no place for a head that gives "
                "classes or numbers.",
                "Use method: prefix_tuning, adapter or lora.",
            )
        self._how = how
        tuned: Any = self._prefix(self.options.projection).apply(model, replace(how, adapter=None))
        if self.gated:
            from luthier.model.bottleneck import GatedPrefix

            encoders = tuned.prompt_encoder
            gated = GatedPrefix(encoders["default"], tuned.peft_config["default"].num_layers)
            encoders["default"] = gated.to(encoders["default"].embedding.weight.device)
        torch.manual_seed(how.seed)
        self.hang(model)
        if how.adapter is not None and model.device.type != "meta":
            self._start_from(tuned, how.adapter)
        trainable_to_float32(tuned, how.pure_bf16)
        combined: nn.Module = tuned
        return combined

    def _start_from(self, model: nn.Module, folder: Path) -> None:
        tensors = read_adapter(folder)
        finished, encoder = tensors.pop(PREFIX), prompt_encoder(model)
        put_hung_weights(model, tensors, folder)
        if self.gated and not (folder / METHOD_STATE).is_file():  # its gates are in it, and fresh ones let half through
            encoder, finished = encoder.encoder, 2 * finished
        start_encoder(encoder, folder, finished)

    def _prefix(self, projection: bool) -> prefix_tuning.PrefixTuning:
        own = self.options
        settings = {"num_virtual_tokens": own.num_virtual_tokens, "projection": projection, "init": own.prefix_init}
        return prefix_tuning.build(prefix_tuning.Options(name=own.name, **settings))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the finished prefix, the bottlenecks and what they hang on."""
        prefix: Tensor = model.get_prompt_embedding_to_save("default")  # type: ignore[operator]
        tensors = hung_weights(model) | {PREFIX: prefix.contiguous()}
        method = type(self).__module__.rpartition(".")[2]
        write_own(folder, method, self.options, tensors, self._how or Apply(seed=0))

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """What makes the prefix: an embedding, an MLP, gates."""
        found: dict[str, Tensor] = prompt_encoder(model).state_dict()
        return found

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put a checkpoint's weights back. Raises ModelError for those of another model, or a folder that is none."""
        tensors = read_adapter(folder)
        tensors.pop(PREFIX, None)
        put_hung_weights(model, tensors, folder)
        prompt_encoder(model).load_state_dict(read_state(folder))

    def shapes(self, model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
        """What a saved adapter holds for a model (without weights), which is changed."""
        tuned = self._prefix(projection=False).apply(model, Apply(seed=0))
        self.hang(model)
        return hung_shapes(model) | {PREFIX: tuple(prompt_encoder(tuned).embedding.weight.shape)}

    def attach(self, model: PreTrainedModel, folder: Path) -> Any:
        """A base model with the saved prefix and bottlenecks, for use. Raises ModelError for those of another model."""
        tuned: Any = self._prefix(projection=False).apply(model, Apply(seed=0))
        self.hang(model)
        tensors = read_adapter(folder)
        saved, own = tensors.pop(PREFIX), prompt_encoder(tuned)
        if saved.shape != own.embedding.weight.shape:
            raise ModelError(
                f"the adapter in {folder} is made for another model: its prefix has the shape {list(saved.shape)}, this "
                f"model's would have {list(own.embedding.weight.shape)}.",
                "Name the model it was trained on in base_model_name_or_path of its adapter_config.json.",
            )
        own.load_prompt_embeddings(saved)
        put_hung_weights(tuned, tensors, folder)
        return tuned.eval()
