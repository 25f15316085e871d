"""Run by torchrun in two processes: trains a tiny model with every optimizer, each rank on its half of the rows, and alone on
all of them; prints how the weights compare."""

from __future__ import annotations

import json

import torch
import torch.distributed as dist

from luthier.config.plugins import OPTIMIZERS
from luthier.data.packing import pack
from luthier.training.engines.ddp import Ddp
from luthier.training.optimization import to_evaluation, to_training, trained_parameters
from tests.scoring.test_routes import random_examples
from tests.training.optimizers.tiny_runs import TinyRun, config_of

EXAMPLES = random_examples([12, 7])
STEPS = 8


def train(name: str, shared: bool) -> dict[str, torch.Tensor]:
    """Weights after some steps, with the rows shared out among the ranks or with all of them here."""
    config = config_of(name, weight_decay=0.01)
    ratio = config.training.optim.learning_rate_ratio
    config = config_of(name, weight_decay=0.01, learning_rate=1e-3 * ratio)
    run = TinyRun(config)
    engine = Ddp(config.training, torch.device("cpu")) if shared else None
    parameters = [parameter for _, parameter in trained_parameters(run.model)]
    batch = pack(EXAMPLES[dist.get_rank() :: 2] if shared else EXAMPLES)
    total = float(pack(EXAMPLES).weights_N.sum())
    for _ in range(STEPS):
        to_training(run.optimizer)
        loss = -(run.scorer(batch).logp_N * batch.weights_N).sum() / total
        loss.backward()
        if engine is not None:
            engine.clip(run.optimizer, parameters, 1.0)
        else:
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        run.optimizer.step()
        run.optimizer.zero_grad(set_to_none=True)
    to_evaluation(run.optimizer)
    return run.weights()


def main() -> None:
    dist.init_process_group("gloo")
    found = {}
    for name in OPTIMIZERS.names():
        start = TinyRun(config_of(name)).weights()
        shared, alone = train(name, shared=True), train(name, shared=False)
        flat = torch.cat([value.flatten() for value in shared.values()])
        both = [torch.empty_like(flat) for _ in range(2)]
        dist.all_gather(both, flat)
        found[name] = {
            "ranks_equal": torch.equal(*both),
            "difference": float(torch.cat([(alone[n] - shared[n]).flatten() for n in shared]).norm()),
            "moved": float(torch.cat([(start[n] - shared[n]).flatten() for n in shared]).norm()),
        }
    if dist.get_rank() == 0:
        print(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
