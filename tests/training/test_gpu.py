"""On a CUDA device: the same numbers as on the CPU, runs that are gone on with, and 16-bit bases. Skipped without one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.config.plugins import METHODS as METHOD_PLUGINS
from tests.tiny import config_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


METHODS: list[Any] = [
    "full", "freeze", "lora", "adalora", "prompt_tuning", "p_tuning", "prefix_tuning", "mam", "unipelt", "adapter",
    {"name": "lora", "init": "pissa", "rank": 4},
    {"name": "lora", "init": "olora", "rank": 4, "use_dora": True},
]  # fmt: skip


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_the_gpu_gives_the_cpu_losses(method: Any, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    for name, use_cpu in (("cpu", True), ("gpu", False)):
        config = config_for(tiny_llama, rows, tmp_path / name, use_cpu=use_cpu, tf32=False)
        luthier.train({**config, "method": method})
    assert losses(tmp_path / "gpu") == pytest.approx(losses(tmp_path / "cpu"), rel=1e-3)


@pytest.mark.parametrize("method", [*METHODS, {"name": "lora", "init": "eva", "rank": 4}, "llama_pro"], ids=str)
def test_gone_on_with_on_the_gpu(method: Any, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = {**config_for(tiny_llama, rows, tmp_path / "run", use_cpu=False, tf32=False), "method": method}
    luthier.train(config)
    whole = losses(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000012")
    luthier.train(config, resume=True)
    assert losses(tmp_path / "run") == pytest.approx(whole, rel=1e-4)


@pytest.mark.parametrize("method", [{"name": "lora", "init": "pissa", "rank": 4}, "llama_pro"], ids=str)
def test_methods_start_on_the_gpu(
    method: Any, tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = METHOD_PLUGINS.load(method if isinstance(method, str) else method["name"])
    seen: list[str] = []
    kind = type(module.build(module.Options()))
    apply = kind.apply

    def look(self: Any, model: Any, how: Any) -> Any:
        seen.append(model.device.type)
        return apply(self, model, how)

    monkeypatch.setattr(kind, "apply", look)
    config = config_for(tiny_llama, rows, tmp_path / "run", use_cpu=False, max_steps=1)
    luthier.train({**config, "method": method})
    assert seen == ["meta", "cuda"]


def test_bf16_learns(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", use_cpu=False, bf16=True)
    config["model"] = {"name": str(tiny_llama), "dtype": "bfloat16"}
    luthier.train(config)
    found = losses(tmp_path / "run")
    assert found[-1] < found[0]
