"""Shapes of public models, so that a run can be planned whose model is not here."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field, TypeAdapter

from luthier.config.sections import Section
from luthier.foundation.errors import UserError
from luthier.foundation.registry import nearest

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

TUNED = re.compile(r"-(instruct|chat|it|base|hf|pt|thinking)(?=-|$)")  # what tuned models are called beside their base
DATE = re.compile(r"-\d{4}$")


class ModelShape(Section):
    """Sizes of one public model."""

    name: str = Field(description="Short name.")
    ids: tuple[str, ...] = Field(description="Hub names that have this shape.")
    aliases: tuple[str, ...] = Field((), description="Further short names.")
    parameters: int = Field(description="The published total, tied weights once.")
    kind: str = Field(description="transformers' model_type.")
    config: dict[str, Any] = Field(description="What its config.json says of sizes.")

    def model_config_of(self) -> PreTrainedConfig:
        """As transformers' config."""
        from transformers import AutoConfig

        config: PreTrainedConfig = AutoConfig.for_model(self.kind, **self.config)
        return config


@cache
def model_shapes() -> tuple[ModelShape, ...]:
    """All of them, as `model_shapes.yaml` lists them."""
    text = resources.files("luthier.planning").joinpath("model_shapes.yaml").read_text(encoding="utf-8")
    return tuple(TypeAdapter(list[ModelShape]).validate_python(yaml.safe_load(text)))


def shape_of(name: str) -> ModelShape | None:
    """The shape that a short name or a hub name stands for; None if it is not in the table."""
    wanted = TUNED.sub("", name.lower().removeprefix("huggingface:").removeprefix("modelscope:"))
    known = _shapes_by_name()
    return known.get(wanted) or known.get(DATE.sub("", wanted))


@cache
def _shapes_by_name() -> dict[str, ModelShape]:
    return {
        TUNED.sub("", known.lower()): shape
        for shape in model_shapes()
        for known in (shape.name, *shape.aliases, *shape.ids)
    }


def named_shape(name: str) -> ModelShape:
    """The shape of a name. Raises UserError with the nearest ones if there is none."""
    shape = shape_of(name)
    if shape is None:
        known = [item for shape in model_shapes() for item in (shape.name, *shape.aliases)]
        close = nearest(name.lower(), known)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"there is no model shape named {name!r}.", f"{hint}Known: {', '.join(known)}.")
    return shape
