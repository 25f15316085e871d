"""What the methods of peft have in common: made, saved and loaded by peft, in its own format."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from luthier.foundation.errors import ModelError
from luthier.model.heads import save_with_adapter
from luthier.model.method import METHOD_STATE, Apply, Method, refuse_new_tokens, trainable_to_float32
from luthier.model.methods._experts import asked_updates, compare_updates
from luthier.model.plain_peft import without_bitsandbytes
from luthier.model.quantization import has_quantized
from luthier.model.quiet import quiet_peft

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


class PeftMethod(Method):
    """An adapter that peft makes; a subclass gives its config."""

    saves: Literal["adapter"] = "adapter"
    run_settings: ClassVar[tuple[str, ...]] = ()  # of peft's config, that the options `of_the_run` decide

    @abstractmethod
    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's config for this model. Raises ModelError for names that match nothing."""

    def check_tokens(self, how: Apply) -> None:
        """Raise ModelError if rows of the embedding must learn and this method can't train them."""
        refuse_new_tokens(self.options.name, how)

    def check_model(self, model: PreTrainedModel) -> None:
        """Raise ModelError if peft can't put this method on a model."""

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Put the adapter on a model.

        Raises:
            ModelError: settings name something that the model does not have, or peft refuses the model.
        """
        with without_bitsandbytes(has_quantized(model)):
            return self._made(model, how)

    def _made(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """The model with its adapter."""
        import torch
        from peft import get_peft_model

        from luthier.model.mixed_precision import keep_precisions_apart

        self.check_tokens(how)
        config = self.peft_config(model, how)
        if how.adapter is not None:
            config = self.continued_config(config, how.adapter)
        self.check_model(model)
        if how.head is not None:
            save_with_adapter(config, model)
        targets: Any = getattr(self.options, "target_modules", [])
        asked = asked_updates(model, targets)
        torch.manual_seed(how.seed)
        try:
            with quiet_peft():
                tuned: Any = get_peft_model(model, config)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise ModelError(
                f"peft can't put {self.options.name} on {type(model).__name__} so: {error}",
                "Change the method's settings.",
            ) from error
        if asked and how.adapter is None:
            compare_updates(tuned, asked, targets)
        self.start(tuned)
        tuned.peft_config["default"].base_model_name_or_path = how.base_name
        tuned.peft_config["default"].revision = how.revision
        if how.adapter is not None and model.device.type != "meta":
            self.start_from(tuned, how.adapter)
        trainable_to_float32(tuned, how.pure_bf16)
        keep_precisions_apart(tuned)
        peft_model: nn.Module = tuned
        return peft_model

    def start(self, model: Any) -> None:
        """Change a fresh adapter's weights where its method does not start as peft's does."""

    def continued_config(self, fresh: Any, folder: Path) -> Any:
        """The config of an adapter that is trained further: its own, but for what belongs to the run."""
        from peft import PeftConfig

        with quiet_peft():
            config: Any = PeftConfig.from_pretrained(folder)
        config.inference_mode, config.base_model_name_or_path = False, None
        if hasattr(config, "init_lora_weights"):
            config.init_lora_weights = True
        for name in self.run_settings:
            setattr(config, name, getattr(fresh, name))
        return config

    def start_from(self, model: nn.Module, folder: Path) -> None:
        """Give fresh weights those of a finished adapter."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, read_adapter(folder))

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write adapter_model.safetensors and adapter_config.json."""
        # the base's embedding is never copied into the adapter: new rows are kept by trainable_token_indices
        model.save_pretrained(folder, save_embedding_layers=False)  # type: ignore[operator]
        (folder / "README.md").unlink(missing_ok=True)  # peft's empty model card

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put an adapter's weights back."""
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, read_adapter(folder))


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """The tensors of an adapter, by peft's names."""
    from safetensors.torch import load_file

    tensors: dict[str, Tensor] = load_file(folder / "adapter_model.safetensors")
    return tensors


def read_state(folder: Path) -> dict[str, Tensor]:
    """What `Method.state` gave when a checkpoint was written.

    Raises:
        ModelError: the folder is no checkpoint, so training can't go on from it.
    """
    from safetensors.torch import load_file

    if not (folder / METHOD_STATE).is_file():
        raise ModelError(
            f"{folder} has no {METHOD_STATE}: it can be used, but training can't go on from it.",
            "Go on from one of the run's checkpoints.",
        )
    tensors: dict[str, Tensor] = load_file(folder / METHOD_STATE)
    return tensors
