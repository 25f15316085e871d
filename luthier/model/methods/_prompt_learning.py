"""What methods with virtual tokens have in common: peft keeps the finished vectors, a checkpoint what made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import ModelError
from luthier.model.method import METHOD_STATE
from luthier.model.methods._peft_adapter import PeftMethod, read_adapter, read_state

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel


WIDTHS = {"hidden_size", "n_embd", "d_model"}


class PromptMethod(PeftMethod):
    """Virtual tokens, made by an encoder that the saved adapter no longer needs."""

    def check_model(self, model: PreTrainedModel) -> None:
        """peft finds the width of its vectors under a few names in the model's config."""
        settings = model.config.get_text_config().to_dict()
        if not WIDTHS & settings.keys():
            raise ModelError(
                f"peft does not know the width of {type(model).__name__}, which its config has under another name than "
                f"{', '.join(sorted(WIDTHS))}: no virtual tokens can be put before its rows.",
                "Use method: lora.",
            )

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the finished vectors: what the encoder gives without its dropout, as in use."""
        encoder = prompt_encoder(model)
        training = encoder.training
        encoder.eval()
        super().save(model, folder)
        encoder.train(training)

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The encoder's weights."""
        found: dict[str, Tensor] = prompt_encoder(model).state_dict()
        return found

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the encoder's weights back. Raises ModelError for a folder that has none."""
        prompt_encoder(model).load_state_dict(read_state(folder))

    def continued_config(self, fresh: Any, folder: Path) -> Any:
        """The fresh one: the adapter's own numbers are in the options, and the rest is the model's."""
        return fresh

    def start_from(self, model: nn.Module, folder: Path) -> None:
        """Go on from a checkpoint's encoder, or from finished vectors where they are all that is trained.

        Raises:
            ModelError: the encoder was left out of what was saved.
        """
        start_encoder(prompt_encoder(model), folder, read_adapter(folder)["prompt_embeddings"])


def start_encoder(encoder: Any, folder: Path, finished: Tensor) -> None:
    """Give an encoder the weights of a checkpoint, or the finished vectors where it is nothing but them.

    Raises:
        ModelError: it is more than them, and was not saved.
    """
    import torch

    if (folder / METHOD_STATE).is_file():
        encoder.load_state_dict(read_state(folder))
        return
    if dict(encoder.named_parameters()).keys() != {"embedding.weight"}:
        raise ModelError(
            f"{folder} was saved without the network that made its vectors, so it can't be trained further.",
            "Continue one of the run's checkpoints, which keep it.",
        )
    with torch.no_grad():
        encoder.embedding.weight.copy_(finished)


def prompt_encoder(model: nn.Module) -> Any:
    """What makes the virtual tokens."""
    return model.prompt_encoder["default"]  # type: ignore[index]
