"""Whether chance changes what a model computes in training: dropped units and layers, noise in a router's choice."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn
from transformers import PreTrainedConfig

OF_HEADS = ("classifier", "summary", "seq_classif")  # rates of heads, which are modules where there are any

DRAWS_EXPERTS = ("PhimoeSparseMoeBlock",)  # in training, by chance, however small its jitter is


def drops_out(model: nn.Module) -> bool:
    """Whether chance takes part in a module's training: a part that drops out, or a rate that a part hands on or reads.

    Every family names them in its own way (attention_dropout, resid_pdrop, layerdrop, input_jitter_noise), so all numbers
    of such names count.
    """
    return any(rate > 0 for module in model.modules() for rate in _rates(module))


def _rates(module: nn.Module) -> Iterator[float]:
    own = vars(module)
    if "dropout" in type(module).__name__.lower() and isinstance(own.get("p"), (int, float)):  # torch's, peft's
        yield own["p"]
    if type(module).__name__ in DRAWS_EXPERTS:
        yield 1.0
    yield from _named(own)
    config = own.get("config")  # Falcon reads its rates there
    if isinstance(config, PreTrainedConfig):
        yield from _named(vars(config.get_text_config()))


def _named(values: Mapping[str, Any]) -> Iterator[float]:
    for name, value in values.items():
        by_chance = "drop" in name or name.endswith("jitter_noise")
        if by_chance and isinstance(value, float) and not name.startswith(OF_HEADS):
            yield value
