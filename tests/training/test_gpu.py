"""On a CUDA device: the same numbers as on the CPU, and bfloat16 autocast over a 16-bit base. Skipped without one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import luthier
from tests.tiny import config_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("method", ["full", "freeze", "lora"])
def test_the_gpu_gives_the_cpu_losses(method: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    for name, use_cpu in (("cpu", True), ("gpu", False)):
        config = config_for(tiny_llama, rows, tmp_path / name, use_cpu=use_cpu, tf32=False)
        luthier.train({**config, "method": method})
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


def test_bf16_learns(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", use_cpu=False, bf16=True)
    config["model"] = {"name": str(tiny_llama), "dtype": "bfloat16"}
    luthier.train(config)
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
