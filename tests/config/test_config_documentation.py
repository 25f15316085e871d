"""`config schema` and `config explain` say what the schema says."""

from __future__ import annotations

import json

import pytest
from pydantic import BaseModel

from luthier.commands import config as command
from luthier.config.documentation import json_schema, key_helps
from luthier.config.loading import all_keys, sections
from luthier.config.schema import RunConfig
from luthier.config.sections import PluginOptions, Section, plain_types
from luthier.foundation.errors import UserError


def test_every_key_is_described() -> None:
    for entry in key_helps():
        assert entry.description, entry.key
        assert entry.type and entry.default, entry.key


def test_the_listing_has_every_key() -> None:
    lines = command.listing().splitlines()
    listed = {line.split(":")[0] for line in lines if not line.startswith((" ", "#"))} - {""}
    assert listed == set(all_keys()) - {"stage.name", "method.name", "training.optim.name"}


def test_every_section_is_listed() -> None:
    def within(section: type[BaseModel]) -> set[type[BaseModel]]:
        kinds = {kind for field in section.model_fields.values() for kind in plain_types(field.annotation)}
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Section)]
        return {section}.union(*(within(kind) for kind in inner if not issubclass(kind, PluginOptions)))

    assert within(RunConfig) <= set(sections().values())


def test_types_in_words() -> None:
    # the methods share names of settings
    types = {e.key: (e.type, e.default) for e in key_helps() if e.valid_for in ("", "stage sft", "method lora")}
    assert types["training.learning_rate"] == ("number > 0, or null", "null")
    assert types["training.seed"] == ("whole number >= 0", "42")
    assert types["model.name"] == ("text", "(required)")
    assert types["method.rank"] == ("whole number >= 1", "8")
    assert types["stage"][0].startswith("name or mapping: ")
    assert types["method"][1] == "lora"


def test_the_json_schema_holds_short_and_long_forms() -> None:
    schema = json_schema()
    json.dumps(schema, allow_nan=False)
    assert schema["required"] == ["model", "data"]
    assert {"type": "string"} in schema["properties"]["model"]["anyOf"]
    train = schema["$defs"]["DataConfig"]["properties"]["train"]
    assert {branch.get("type") for branch in train["anyOf"]} >= {"string", "array"}
    assert "rank" in json.dumps(schema)
    optim = schema["$defs"]["TrainingConfig"]["properties"]["optim"]["anyOf"]
    assert optim[0]["type"] == "string"
    assert {branch["allOf"][1]["properties"]["name"]["const"] for branch in optim[1:]} >= {"adamw", "galore"}


def test_every_reference_in_the_json_schema_resolves() -> None:
    schema = json_schema()

    def references(value: object) -> list[str]:
        if isinstance(value, dict):
            own = [str(value["$ref"])] if "$ref" in value else []
            return own + [found for inner in value.values() for found in references(inner)]
        return [found for inner in value for found in references(inner)] if isinstance(value, list) else []

    for reference in references(schema):
        assert reference.removeprefix("#/$defs/") in schema["$defs"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("training.learning_rate", "Peak learning rate"),
        ("learning_rate", "Peak learning rate"),
        ("method.rank", "valid   where method is lora"),
        ("method.rank", "arxiv.org/abs/2106.09685"),
        ("method.lora", "method.alpha"),
        ("method", "About method full"),
        ("training.optim", "About training.optim galore"),
        ("training.optim.galore", "valid   where training.optim is galore"),
        ("training.optim.galore", "arxiv.org/abs/2403.03507"),
        ("training.optim.rank", "where training.optim is apollo"),
        ("stage", "sft"),
        ("training", "training.max_steps"),
        ("data.train.0.system", "System prompt"),
        ("data.train.3.system", "System prompt"),
        ("data.train", "data.train.0.columns"),
        ("model.combine", "magnitude_prune_svd"),
        ("model.combine.density", "Share of the numbers"),
        ("model.adapters.1.weight", "The update counts this many times"),
        (None, "output_dir"),
    ],
)
def test_explain(key: str | None, expected: str) -> None:
    assert expected in command.explain(key).text()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("training.learning_rte", "training.learning_rate"),
        ("sead", "training.seed"),
        ("cutoff_len", "data.cutoff_length"),
        ("lora_rank", "method.rank"),
        ("zzzz", "config schema"),
    ],
)
def test_explain_of_an_unknown_key(key: str, expected: str) -> None:
    with pytest.raises(UserError) as caught:
        command.explain(key)
    assert expected in str(caught.value)
