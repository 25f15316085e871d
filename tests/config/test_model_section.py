"""The model's part of a config: short forms, and settings that would have no effect."""

from __future__ import annotations

from typing import Any

import pytest

from luthier.config.loading import dump, load, validate
from luthier.foundation.errors import ConfigError

FOUR = {"bits": 4, "type": "nf4", "double": True, "compute_dtype": "auto", "int8_threshold": None}
EIGHT = {"bits": 8, "type": "int8", "double": None, "compute_dtype": None, "int8_threshold": 6.0}


def with_model(**settings: Any) -> dict[str, Any]:
    return {"model": {"name": "m", **settings}, "data": {"train": "a.jsonl"}}


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("nf4", FOUR),
        (4, FOUR),
        ({}, FOUR),
        ({"type": "fp4", "double": False}, {**FOUR, "type": "fp4", "double": False}),
        ("int8", EIGHT),
        (8, EIGHT),
        ({"type": "int8", "int8_threshold": 0}, {**EIGHT, "int8_threshold": 0.0}),
        (None, None),
    ],
)
def test_a_short_form_of_quantization_is_the_long_one(short: Any, long: dict[str, Any] | None) -> None:
    resolved = dump(load(with_model(quantization=short)))
    assert resolved["model"]["quantization"] == long
    assert dump(validate(resolved)) == resolved, "what a run writes down can be read again"


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({"bits": 5}, "model.quantization.bits: must be 4 or 8, found 5"),
        ("nf5", "model.quantization"),
        (True, "model.quantization"),
        ({"type": "int8", "bits": 4}, "type int8 has 8 bits, but bits is 4"),
        ({"bits": 8, "double": True}, "double would have no effect with 8 bits"),
        ({"bits": 8, "compute_dtype": "float32"}, "compute_dtype would have no effect with 8 bits"),
        ({"bits": 4, "int8_threshold": 3.0}, "int8_threshold would have no effect with 4 bits"),
        ({"type": "int8", "int8_threshold": -1}, "int8_threshold"),
    ],
)
def test_a_quantization_that_is_none(value: Any, said: str) -> None:
    with pytest.raises(ConfigError) as error:
        load(with_model(quantization=value))
    assert any(said in problem for problem in error.value.problems), error.value.problems


def test_an_override_may_look_into_it() -> None:
    config = load(with_model(quantization="fp4"), ["model.quantization.double=false"])
    assert config.model.quantization is not None and str(config.model.quantization) == "fp4"
