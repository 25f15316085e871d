"""Whole runs with every optimizer: stopped or killed and gone on with, on two ranks, with what is saved being what was measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerCallback

import luthier
from luthier.config.plugins import OPTIMIZERS
from luthier.foundation.errors import Interrupted, TrainingError, UserError
from tests.tiny import config_for
from tests.training.optimizers.tiny_runs import SMALL
from tests.training.whole_runs import launch, traces

every = pytest.mark.parametrize("name", OPTIMIZERS.names())
FAR = {"muon": 2e-2}  # its products are in bfloat16 where there are units for that
# these keep more than moments: which block has its turn, a subspace, other weights; all are tried with `make test-all`
TRICKY = ("badam", "galore", "schedule_free")
ROOT = Path(__file__).parents[3]


def settings(name: str, model: Path, rows: Path, out: Path, **training: Any) -> dict[str, Any]:
    """Evaluations and checkpoints that fall on different steps, in the middle of a block's or a subspace's turn too."""
    defaults: dict[str, Any] = {
        "max_steps": 8, "save_steps": 3, "logging_steps": 3, "eval_strategy": "steps", "eval_steps": 2, "weight_decay": 0.01,
        "optim": {"name": name, **SMALL.get(name, {})},
    }  # fmt: skip
    config = config_for(model, rows, out, **{**defaults, **training})
    del config["training"]["learning_rate"]
    config["method"] = "full"
    config["data"]["validation"] = 4
    return config


class StopAtFive(TrainerCallback):
    """As Ctrl-C does: the step is finished and saved, out of the rhythm of the other checkpoints."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    "name", [name if name in TRICKY else pytest.param(name, marks=pytest.mark.slow) for name in OPTIMIZERS.names()]
)
def test_stopped_between_checkpoints_and_gone_on_with(name: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    luthier.train(settings(name, tiny_llama, rows, tmp_path / "whole"))
    config = settings(name, tiny_llama, rows, tmp_path / "run")
    config["training"]["callbacks"] = [f"{__name__}.StopAtFive"]
    with pytest.raises(Interrupted):
        luthier.train(config)
    del config["training"]["callbacks"]
    luthier.train(config, resume=True)
    assert traces(tmp_path / "run") == traces(tmp_path / "whole")


@pytest.mark.slow
@every
@pytest.mark.parametrize("moment", ["step:5", "writing:2"])
def test_killed_and_gone_on_with(name: str, moment: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    luthier.train(settings(name, tiny_llama, rows, tmp_path / "whole"))
    config = settings(name, tiny_llama, rows, tmp_path / "run")
    assert launch(config, tmp_path, "--die-at", moment).returncode == -signal.SIGKILL
    done = launch(config, tmp_path, "--resume")
    assert done.returncode == 0, done.stderr
    assert traces(tmp_path / "run") == traces(tmp_path / "whole")


def test_what_schedule_free_saves_is_what_it_measured(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """The average, not the weights that gradients were taken at: trained on, it gives the loss of the last evaluation."""
    out = tmp_path / "run"
    luthier.train(settings("schedule_free", tiny_llama, rows, out, save_steps=8))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    measured = [line["eval_loss"] for line in lines if "eval_loss" in line]
    again = settings("sgd", out / "final", rows, tmp_path / "again", max_steps=1, eval_steps=1)
    again["training"] |= {"learning_rate": 1e-30, "weight_decay": 0.0}
    luthier.train(again)
    line = json.loads((tmp_path / "again" / "metrics.jsonl").read_text().splitlines()[-1])
    assert line["eval_loss"] == pytest.approx(measured[-1], rel=1e-6)
    kept = load_file(sorted((out / "checkpoints").glob("step-*"))[-1] / "optimizer.safetensors")
    final = load_file(out / "final" / "model.safetensors")
    name = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(final[name], kept[f"{name}|y"])


def test_another_optimizer_does_not_go_on(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = settings("galore", tiny_llama, rows, tmp_path / "run", max_steps=3)
    luthier.train(config)
    config["training"] |= {"max_steps": 5, "optim": {"name": "galore", "rank": 4}}
    with pytest.raises(UserError, match=r"training\.optim\.rank: 8 -> 4"):
        luthier.train(config, resume=True)
    config["training"]["optim"] = "lion"
    with pytest.raises(UserError, match=r"training\.optim\.name: galore -> lion"):
        luthier.train(config, resume=True)


def test_what_does_not_fit_is_refused_before_weights_are_read(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.model import loading

    def read(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights were read")

    monkeypatch.setattr(loading, "weights_at", read)
    config = settings("galore", tiny_llama, rows, tmp_path / "run", optim="galore")
    with pytest.raises(TrainingError, match="its rank is 128, and the shorter side of no trained matrix exceeds 32"):
        luthier.train(config)


def test_callbacks_see_which_optimizer_it_is(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    from luthier.config.loading import load
    from luthier.training.callbacks import training_arguments

    def shown(name: str) -> str:
        config = load(settings(name, tiny_llama, rows, tmp_path / "run"))
        return str(training_arguments(config).to_dict()["optim"])

    assert [shown(name) for name in ("adamw", "lion", "muon")] == ["adamw_torch_fused", "lion_32bit", "muon"]


@pytest.mark.slow
def test_two_ranks_have_the_weights_of_one() -> None:
    """Every optimizer on gradients summed over two gloo ranks: both ranks' weights have the same bits, and are those of one
    process with the whole batch, as far as another order of summing lets them be."""
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", str(script)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=280, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    compared = json.loads(done.stdout.splitlines()[-1])
    assert compared.keys() == set(OPTIMIZERS.names())
    for name, found in compared.items():
        assert found["ranks_equal"], name
        assert found["difference"] < FAR.get(name, 1e-4) * found["moved"], (name, found)
