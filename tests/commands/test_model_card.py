"""The model card says what was done to the base."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import TrainerState

from luthier.commands.model_card import model_card
from luthier.config.loading import load


def card(method: str = "lora", **model: Any) -> str:
    config = load({"model": {"name": "owner/base", **model}, "data": {"train": "rows.jsonl"}, "method": method})
    return model_card(config, "owner/base", TrainerState()).partition("## Config")[0]


@pytest.mark.parametrize(
    ("method", "model", "line"),
    [
        ("lora", {"quantization": "nf4"}, "- base quantized while it was trained: nf4 (double)"),
        ("lora", {"quantization": "int8"}, "- base quantized while it was trained: int8"),
        (
            "lora",
            {"rope_scaling": {"type": "yarn", "factor": 4.0}},
            "- positions stretched (rope scaling): type: yarn, factor: 4.0",
        ),
        (
            "lora",
            {"config_overrides": {"num_hidden_layers": 3}},
            "- changed in the base's config: num_hidden_layers: 3",
        ),
        ("lora", {"adapters": ["runs/a", "runs/b"]}, "- adapters on the base: `runs/a`, `runs/b`"),
        ("full", {"from_scratch": True}, "- weights: random at the start"),
    ],
)
def test_each_change_has_its_line(method: str, model: dict[str, Any], line: str) -> None:
    plain = card(method).splitlines()
    added = [found for found in card(method, **model).splitlines() if found not in plain]
    assert len(added) == 1 and added[0].startswith(line)
