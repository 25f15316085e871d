"""`key=value` settings from the command line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.config.loading import apply_override, load
from luthier.foundation.errors import ConfigError, UserError


def overridden(raw: dict[str, Any], *settings: str) -> dict[str, Any]:
    for setting in settings:
        apply_override(raw, setting)
    return raw


def test_an_empty_output_dir_does_not_fall_back_to_the_default() -> None:
    raw = {"model": "m", "data": {"train": "a.jsonl"}, "output_dir": "runs/mine"}
    with pytest.raises(ConfigError, match="output_dir: is empty"):
        load(raw, ["output_dir="])
    assert load(raw).output_dir == "runs/mine"
    del raw["output_dir"]
    assert load(raw).output_dir == "runs/run"


def test_settings_alone_are_a_config() -> None:
    config = load(None, ["model=m", "data.train=a.jsonl", "training.learning_rate=1e-4", "method.rank=2"])
    assert config.model.name == "m"
    assert config.training.learning_rate == 1e-4
    assert config.method.model_dump()["rank"] == 2


@pytest.mark.parametrize(
    ("raw", "settings", "expected"),
    [
        ({}, ["a.b.c=1"], {"a": {"b": {"c": 1}}}),
        ({"a": 1}, ["a="], {"a": None}),
        ({}, ["a=x=y"], {"a": "x=y"}),
        ({}, ["a=[1, two]"], {"a": [1, "two"]}),
        ({}, ["a={b: true}"], {"a": {"b": True}}),
        ({}, ["a=modelscope:owner/name"], {"a": "modelscope:owner/name"}),
        ({}, ["a=2026-01-31"], {"a": "2026-01-31"}),
        ({"model": "m"}, ["model.dtype=float32"], {"model": {"name": "m", "dtype": "float32"}}),
        ({}, ["method=lora", "method.rank=4"], {"method": {"name": "lora", "rank": 4}}),
        ({"data": {"train": "a"}}, ["data.train.0.system=Hi"], {"data": {"train": [{"path": "a", "system": "Hi"}]}}),
        ({"data": {"train": "a"}}, ["data.train.system=Hi"], {"data": {"train": {"path": "a", "system": "Hi"}}}),
        ({"data": {"train": "a"}}, ["data.train.1=b"], {"data": {"train": ["a", "b"]}}),
        ({}, ["data.train.0.path=a", "data.train.1=b"], {"data": {"train": [{"path": "a"}, "b"]}}),
        ({"data": {"train": ["a", "b"]}}, ["data.train.1=c"], {"data": {"train": ["a", "c"]}}),
        (
            {"data": {"train": {"path": "a"}}},
            ["data.train.0.max_samples=5"],
            {"data": {"train": [{"path": "a", "max_samples": 5}]}},
        ),
    ],
)
def test_where_a_setting_goes(raw: dict[str, Any], settings: list[str], expected: dict[str, Any]) -> None:
    assert overridden(raw, *settings) == expected


@pytest.mark.parametrize(
    ("raw", "setting", "expected"),
    [
        ({}, "training.seed", "is not KEY=VALUE"),
        ({}, "=3", "is not KEY=VALUE"),
        ({}, "a=[1", "is broken YAML"),
        ({}, "a=*.jsonl", "Plain text goes in two pairs of quotes"),
        ({"training": {"seed": 3}}, "training.seed.x=1", "training.seed is 3, not a mapping"),
        ({"data": {"train": ["a"]}}, "data.train.2=b", "'2' is no position in a list of 1"),
        ({"data": {"train": ["a"]}}, "data.train.path=b", "'path' is no position in a list of 1"),
    ],
)
def test_a_setting_that_goes_nowhere(raw: dict[str, Any], setting: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_override(raw, setting)
    assert expected in str(caught.value)


@given(st.integers(0, 2**31), st.floats(1e-12, 1e3))
def test_numbers_survive_the_command_line(seed: int, rate: float) -> None:
    settings = ["model=m", "data.train=a", f"training.seed={seed}", f"training.learning_rate={rate!r}"]
    training = load(None, settings).training
    assert (training.seed, training.learning_rate) == (seed, rate)
