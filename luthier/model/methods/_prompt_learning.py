"""What methods with virtual tokens have in common: peft keeps the finished vectors, a checkpoint what made them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.model.methods._peft_adapter import PeftMethod, read_state

if TYPE_CHECKING:
    from torch import Tensor, nn


class PromptMethod(PeftMethod):
    """Virtual tokens, made by an encoder that the saved adapter no longer needs."""

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """The encoder's weights."""
        found: dict[str, Tensor] = prompt_encoder(model).state_dict()
        return found

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the encoder's weights back. Raises ModelError for a folder that has none."""
        prompt_encoder(model).load_state_dict(read_state(folder))


def prompt_encoder(model: nn.Module) -> Any:
    """What makes the virtual tokens."""
    return model.prompt_encoder["default"]  # type: ignore[index]
