"""What each optimizer's step takes beside weights, states and gradients: the resident set's growth, and what its file says."""

from __future__ import annotations

import ctypes
import json
import re
from pathlib import Path
from typing import Any

import torch

from luthier.config.plugins import OPTIMIZERS
from luthier.foundation.devices import resident_bytes
from luthier.foundation.heap import M_MMAP_THRESHOLD, return_freed_memory
from luthier.training.optimization import to_training
from luthier.training.trained import TrainedParameter, total_bytes, update_tensors
from tests.training.optimizers.tiny_runs import config_of

# in the order of parameter_groups; beside these all else is small
SHAPES: dict[Any, tuple[int, ...]] = {"embedding": (6000, 512), "matrix": (1024, 1536), "vector": (1024,)}
OPTIONS: dict[str, dict[str, Any]] = {"galore": {"update_proj_gap": 1}, "sgd": {"nesterov": True}}


def measured(name: str) -> tuple[int, int]:
    """Bytes that a step takes, and that it is said to."""
    training = config_of(name, weight_decay=0.1, optim=OPTIONS.get(name, {})).training
    groups = []
    for place, (role, shape) in enumerate(SHAPES.items()):
        parameter = torch.nn.Parameter(torch.randn(shape))
        parameter.grad = torch.randn(shape)
        names = {"param_names": [role], "param_places": [place], "role": role}
        groups.append({"params": [parameter], "weight_decay": 0.1 if role != "vector" else 0.0, "lr": 1e-4, **names})
    optimizer = OPTIMIZERS.load(name).build(training, groups, 1e-4)
    to_training(optimizer)
    optimizer.step()
    grown = min(resident_growth(optimizer) for _ in range(3))
    parameters = [TrainedParameter(role, shape, role) for role, shape in SHAPES.items()]
    said = sum(update_tensors(training, parameters, "cpu"))
    # a copy of the gradients is among what schedule_free's state is said to be
    return grown, said + (total_bytes(parameters) if name == "schedule_free" else 0)


def resident_growth(optimizer: torch.optim.Optimizer) -> int:
    return_freed_memory()
    before = resident_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # proc(5): the peak becomes what is resident now
    optimizer.step()
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024 - before


if __name__ == "__main__":
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 2**20)  # every tensor mapped by itself, from the start
    print(json.dumps({name: measured(name) for name in OPTIMIZERS.names()}))
