"""What adapters in luthier's own format have in common: bottlenecks under their names in the model, and a JSON config
that holds the method's options, the base's name, and which method reads it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json, write_json
from luthier.model.inspection import ADAPTER_CONFIG, OWN_METHOD
from luthier.model.method import Apply

if TYPE_CHECKING:
    from torch import Tensor, nn

    from luthier.config.sections import MethodOptions


def inner(model: Any) -> Any:
    """The transformers model that bottlenecks hang in."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def hung_weights(model: nn.Module) -> dict[str, Tensor]:
    """The weights of all bottlenecks, by their names in the transformers model."""
    weights: Mapping[str, Tensor] = inner(model).state_dict()
    return {name: value.cpu().contiguous() for name, value in weights.items() if ".bottleneck." in name}


def hung_shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Their names and shapes; the model may be one without weights."""
    return {name: tuple(value.shape) for name, value in inner(model).state_dict().items() if ".bottleneck." in name}


def put_hung_weights(model: nn.Module, saved: dict[str, Tensor], folder: Path) -> None:
    """Put bottlenecks' weights back.

    Raises:
        ModelError: they are another model's, by name or shape.
    """
    own = hung_weights(model)
    if {name: value.shape for name, value in own.items()} != {name: value.shape for name, value in saved.items()}:
        strange = sorted(set(own) ^ set(saved)) or [n for n, value in own.items() if value.shape != saved[n].shape]
        raise ModelError(
            f"the adapter in {folder} is made for another model: {strange[0]} does not fit.",
            "Name the model it was trained on in base_model_name_or_path of its adapter_config.json.",
        )
    inner(model).load_state_dict(saved, strict=False)


def write_own(folder: Path, method: str, options: MethodOptions, tensors: dict[str, Tensor], how: Apply) -> None:
    """Write adapter_model.safetensors and adapter_config.json."""
    from safetensors.torch import save_file

    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    settings = options.model_dump() | {"name": method}  # however it was registered
    base = {"base_model_name_or_path": how.base_name, "revision": how.revision}
    write_json(folder / ADAPTER_CONFIG, {OWN_METHOD: method, "format_version": 1, **base, "options": settings})


def read_options(folder: Path) -> dict[str, Any]:
    """The options of a method of ours that wrote a folder."""
    options: dict[str, Any] = read_json(folder / ADAPTER_CONFIG)["options"]
    return options
