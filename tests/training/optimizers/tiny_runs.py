"""A tiny model, a batch and an optimizer of the registry, put together as a run does."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from luthier.config.loading import load
from luthier.config.plugins import METHODS
from luthier.config.schema import RunConfig
from luthier.data.packing import pack
from luthier.model.method import Apply
from luthier.scoring.scorer import Scorer
from luthier.training.optimization import make_optimizer, to_training
from tests.scoring.test_routes import random_examples
from tests.tiny import tiny_model

# settings for matrices of 32 rows, and for turns short enough to see several; others are tried as they are
SMALL: dict[str, dict[str, Any]] = {
    "galore": {"rank": 8, "update_proj_gap": 3},
    "apollo": {"rank": 8, "update_proj_gap": 3},
    "badam": {"switch_block_every": 2},
    "adamw8bit": {"min_8bit_size": 1000},
}
BATCH = pack(random_examples([12, 7]))


def config_of(name: str, **training: Any) -> RunConfig:
    optim = {"name": name, **SMALL.get(name, {}), **training.pop("optim", {})}
    return load({"model": "m", "data": {"train": "a"}, "method": "full", "training": {**training, "optim": optim}})


class TinyRun:
    """A tiny Llama, all or its last layer trained, and the optimizer of a config."""

    def __init__(self, config: RunConfig, method: str = "full") -> None:
        self.config = config
        module = METHODS.load(method)
        self.model: nn.Module = module.build(module.Options()).apply(tiny_model("llama"), Apply(seed=1))
        self.optimizer: Optimizer = make_optimizer(config, self.model)
        self.scorer = Scorer(self.model)

    def gradients(self) -> float:
        """Make a batch's gradients; returns its loss."""
        to_training(self.optimizer)
        loss = -(self.scorer(BATCH).logp_N * BATCH.weights_N).sum() / BATCH.weights_N.sum()
        loss.backward()
        return float(loss.detach())

    def steps(self, count: int) -> list[float]:
        """Losses of that many steps."""
        losses = []
        for _ in range(count):
            losses.append(self.gradients())
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return losses

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}
