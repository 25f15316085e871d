"""How a base is changed while it loads, and the file in which an adapter remembers that of its base.

A whole model needs no such file: what was changed stands in its config.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from luthier.config.model_section import ModelConfig, QuantizationConfig, RopeScalingConfig
from luthier.foundation.errors import ModelError
from luthier.foundation.files import read_json, write_json

FILE = "base_settings.json"
KEYS = ("quantization", "rope_scaling", "config_overrides")


@dataclass(frozen=True, slots=True)
class BaseSettings:
    """What was asked for besides the model's own config; see `ModelConfig`."""

    quantization: QuantizationConfig | None = None
    rope_scaling: RopeScalingConfig | None = None
    config_overrides: Mapping[str, Any] = field(default_factory=dict)

    def over(self, other: BaseSettings) -> BaseSettings:
        """These, and the other's where nothing is set here."""
        return BaseSettings(**{key: getattr(self, key) or getattr(other, key) for key in KEYS})

    def __bool__(self) -> bool:
        return any(getattr(self, key) for key in KEYS)

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        model = ModelConfig.model_validate({"name": "base", **{key: getattr(self, key) for key in KEYS}})
        return model.model_dump(mode="json", include=set(KEYS))

    def write(self, folder: Path) -> None:
        """Leave the file in an adapter's folder, if there is anything to say."""
        if self:
            write_json(folder / FILE, self.as_dict())


PLAIN = BaseSettings()


def asked_for(model: ModelConfig) -> BaseSettings:
    """What a config asks for."""
    return BaseSettings(**{key: getattr(model, key) for key in KEYS})


def remembered_by(adapter: Path) -> BaseSettings:
    """What an adapter's base was changed with when it was trained.

    Raises:
        ModelError: the file is not one of ours.
    """
    path = adapter / FILE
    if not path.is_file():
        return PLAIN
    values: dict[str, Any] = read_json(path)
    try:
        return asked_for(ModelConfig.model_validate({"name": "base", **values}))
    except ValidationError as error:
        raise ModelError(
            f"{path} says how the adapter's base is loaded, and can't be understood: {error.errors()[0]['msg']}.",
            "It may be of a newer luthier.",
        ) from error


def remembered_by_all(adapters: Sequence[Path]) -> BaseSettings:
    """What the base of several adapters is loaded with. Several are merged into plain weights, whatever each was trained
    beside.

    Raises:
        ModelError: they were trained on bases that differ.
    """
    found = [remembered_by(folder) for folder in adapters]
    if len(found) < 2:
        return found[0] if found else PLAIN
    plain = [replace(settings, quantization=None) for settings in found]
    for folder, settings in zip(adapters, plain, strict=True):
        if settings != plain[0]:
            raise ModelError(
                f"the adapters {adapters[0]} and {folder} were trained on a base that was changed in another way ({FILE} in "
                "each says how).",
                "Put adapters together that have the same base.",
            )
    return plain[0]
