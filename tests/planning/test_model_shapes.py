"""The bundled shapes: their parameters are the published ones."""

from __future__ import annotations

import pytest

from luthier.config.loading import load
from luthier.foundation.errors import UserError
from luthier.model.loading import skeleton
from luthier.model.method import count_parameters
from luthier.planning.hardware import parse_hardware
from luthier.planning.model_shapes import ModelShape, model_shapes, named_shape, shape_of
from luthier.planning.planner import Planner
from luthier.planning.subject import Subject

QUICK = ("qwen2-0.5b", "llama3-8b", "gemma2-2b", "phi3-mini", "glm4-9b", "mixtral-8x7b")


def check(shape: ModelShape) -> None:
    assert count_parameters(skeleton(shape.model_config_of())).total == shape.parameters, shape.name


@pytest.mark.parametrize("name", QUICK)
def test_parameters_are_the_published_ones(name: str) -> None:
    check(named_shape(name))


@pytest.mark.slow
@pytest.mark.parametrize("shape", model_shapes(), ids=lambda shape: shape.name)
def test_parameters_of_all_shapes(shape: ModelShape) -> None:
    check(shape)


@pytest.mark.parametrize(
    ("hub_id", "name"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2-7b"),
        ("qwen2.5-7b", "qwen2-7b"),
        ("meta-llama/Llama-2-7b-chat-hf", "llama2-7b"),
        ("meta-llama/Llama-3.1-8B-Instruct", "llama3-8b"),
        ("mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b-v0.3"),
        ("google/gemma-2-9b-it", "gemma2-9b"),
        ("Qwen/Qwen3-30B-A3B-Instruct-2507", "qwen3-30b-a3b"),
        ("THUDM/glm-4-9b-chat", "glm4-9b"),
        ("zai-org/GLM-4-9B-0414", "glm4-9b-0414"),
        ("modelscope:Qwen/Qwen3-8B", "qwen3-8b"),
    ],
)
def test_hub_names_have_shapes(hub_id: str, name: str) -> None:
    found = shape_of(hub_id)
    assert found is not None and found.name == name


def test_names_are_told_apart() -> None:
    names = [name.lower() for shape in model_shapes() for name in (shape.name, *shape.aliases, *shape.ids)]
    assert len(names) == len(set(names))
    assert shape_of("someone/else") is None
    with pytest.raises(UserError, match=r"qwen2\.5-7b"):
        named_shape("qwen2.5-7")


def test_a_method_with_a_schedule_needs_no_number_of_steps() -> None:
    """A shape has no rows, so an epoch of it has no known length."""
    shape = named_shape("qwen2-0.5b")
    assert shape is not None
    config = load({"model": shape.name, "data": {"train": "rows.jsonl"}, "method": "adalora"})
    planner = Planner(Subject.of_shape(config, shape.model_config_of()), parse_hardware("1x24GB"))
    assert planner.scorer(config).model is not None
