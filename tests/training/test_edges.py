"""Edges of the loop: overflow, evaluation that is not finite, the best checkpoint, changed settings on resume."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from transformers import TrainerCallback

import luthier
from luthier.foundation.errors import ConfigError, ModelError, TrainingError, UserError
from luthier.model.methods import lora
from luthier.training.checkpoints import Checkpoints
from luthier.training.engines.single import Single
from luthier.training.feeds import _packed
from tests.tiny import config_for, tiny_folder, write_rows


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_longer_linear_schedule_has_its_own_rates(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4, learning_rate=8e-3)
    luthier.train(config)
    config["training"]["max_steps"] = 8
    luthier.train(config, resume=True)
    rates = [line["learning_rate"] for line in lines(tmp_path / "run")]
    assert rates == pytest.approx([8e-3, 6e-3, 4e-3, 2e-3, 4e-3, 3e-3, 2e-3, 1e-3])


def test_settings_changed_on_resume_act(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4, lr_scheduler_type="constant")
    luthier.train(config)
    config["training"] |= {"max_steps": 6, "learning_rate": 1e-5, "weight_decay": 0.3}
    luthier.train(config, resume=True)
    assert [line["learning_rate"] for line in lines(tmp_path / "run")][4:] == [1e-5, 1e-5]
    assert "training.learning_rate: 0.005 -> 1e-05" in capsys.readouterr().err
    kept = json.loads((tmp_path / "run" / "checkpoints" / "step-00000006" / "optimizer.json").read_text())
    assert kept["param_groups"][0]["weight_decay"] == 0.3


def test_changed_data_is_refused_though_a_setting_changed_too(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4)
    luthier.train(config)
    rows.write_text(rows.read_text().replace("fox", "cat"))
    config["training"]["max_steps"] = 8
    with pytest.raises(UserError, match="data's bytes"):
        luthier.train(config, resume=True)


class Overflow(TrainerCallback):
    """From step LUTHIER_TEST_OVERFLOW on, the head is so large that float16 overflows; at step 6 it is mended."""

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        weight = model.get_output_embeddings().weight
        if state.global_step == 2:
            self.kept = weight.detach().clone()
            weight.data.mul_(1e30)
        elif state.global_step == 5:
            weight.data.copy_(self.kept)


def test_an_fp16_overflow_is_skipped_and_counted(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=9, fp16=True, lr_scheduler_type="linear")
    config["training"]["callbacks"] = [f"{__name__}.Overflow"]
    result = luthier.train({**config, "method": "full"})
    found = lines(tmp_path / "run")
    assert [line["loss"] is None for line in found] == [False, False, True, True, True, False, False, False, False]
    assert math.isfinite(result.train_loss)
    rates = [line["learning_rate"] for line in found]
    assert rates[2] == rates[3] == rates[4] == rates[5], "a skipped step does not move the schedule"


class OverflowForever(TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for parameter in model.parameters():
            parameter.data.mul_(1e6)


def test_twenty_overflows_in_a_row_are_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=40, fp16=True, save_strategy="no")
    config["training"]["callbacks"] = [f"{__name__}.OverflowForever"]
    with pytest.raises(TrainingError, match="20 steps in a row overflowed in fp16"):
        luthier.train({**config, "method": "full"})


class Ruin(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step == 4:
            next(parameter for parameter in model.parameters() if parameter.requires_grad).data[0, 0] = float("nan")


def test_an_evaluation_that_is_not_finite_is_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", eval_strategy="steps", eval_steps=4, save_steps=2)
    config["data"]["validation"] = 4
    config["training"]["callbacks"] = [f"{__name__}.Ruin"]
    with pytest.raises(TrainingError, match="evaluation after step 4 gave eval_loss nan"):
        luthier.train(config)
    assert (tmp_path / "run" / "checkpoints" / "step-00000002").is_dir()


def test_the_best_is_on_disk_wherever_it_falls(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Evaluations come more often than saves; a new best is saved in between."""
    config = config_for(
        tiny_llama, rows, tmp_path / "run", max_steps=9, eval_strategy="steps", eval_steps=1, save_steps=3,
        load_best_model_at_end=True, learning_rate=0.5, lr_scheduler_type="constant", save_total_limit=1,
    )  # fmt: skip
    config["data"]["validation"] = 6
    result = luthier.train(config)
    best, step = min((line["eval_loss"], line["step"]) for line in lines(tmp_path / "run") if "eval_loss" in line)
    assert result.best_metric == best
    assert f"step-{step:08d} (loss {best:.4f})" in capsys.readouterr().err
    kept = tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "adapter_model.safetensors"
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes() == kept.read_bytes()


def test_pruning_keeps_what_was_just_written(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, keep=1, fingerprints={})
    checkpoints.write(4, lambda folder: (folder / "a").write_text("4"))
    (tmp_path / "step-00000008").mkdir()  # a damaged one of later, which a resumed run passed over
    checkpoints.write(6, lambda folder: (folder / "a").write_text("6"))
    assert [path.name for path in checkpoints.paths()] == ["step-00000006"]


def test_sigterm_to_the_whole_group_with_workers(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Schedulers signal every process of a job: the workers leave it to the trainer, which saves."""
    config = config_for(
        tiny_llama, rows, tmp_path / "run", max_steps=100_000, dataloader_num_workers=2, logging_steps=1
    )
    (tmp_path / "config.json").write_text(json.dumps(config))
    process = subprocess.Popen(
        [sys.executable, "-m", "luthier.cli", "train", str(tmp_path / "config.json")],
        stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "everything is saved" in said
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


class Blocked(Dataset[list[int]]):
    """What signals a process holds back."""

    def __getitem__(self, place: tuple[int, int]) -> list[int]:
        return sorted(signal.pthread_sigmask(signal.SIG_BLOCK, []))


def test_workers_never_see_a_stop_from_their_first_moment_on() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    (blocked,) = _packed(Blocked(), [(0, 0)], 1)
    assert {signal.SIGINT, signal.SIGTERM} <= set(blocked)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before


@pytest.mark.parametrize("method", ["lora", "freeze", "full"])
def test_pure_bf16(method: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    config = config_for(tiny_llama, rows, tmp_path / "run", pure_bf16=True, max_steps=4)
    luthier.train({**config, "method": method})
    (weights,) = (tmp_path / "run" / "final").glob("*model.safetensors")
    assert {value.dtype for value in load_file(weights).values()} == {torch.bfloat16}


@pytest.mark.parametrize("modules", [["lm_head"], ["model.embed_tokens"], ["lm_head", "embed_tokens"]])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_new_tokens_beside_modules_to_save(kind: str, modules: list[str], rows: Path, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", kind, template=None)
    config = config_for(base, rows, tmp_path / "run", max_steps=3)
    config["data"] |= {"template": "llama3", "cutoff_length": 200}
    config["method"]["modules_to_save"] = modules
    first, *_, last = [line["loss"] for line in (luthier.train(config), lines(tmp_path / "run"))[1]]
    assert last < first


@pytest.mark.parametrize(
    ("method", "said"),
    [
        ({"target_modules": ["mlp"]}, "'mlp'"),
        ({"target_modules": ".*norm.*"}, "norm"),
        ({"target_modules": []}, "at least 1 item"),
        ({"init": "orthogonal", "rank": 3}, "even rank"),
    ],
)
def test_targets_that_lora_can_not_stand_beside(
    method: dict[str, Any], said: str, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run")
    config["method"] |= method
    with pytest.raises((ModelError, ConfigError), match=said):
        luthier.train(config)


@pytest.mark.parametrize("name", ["logging_steps", "save_steps", "warmup_steps"])
def test_steps_are_whole_or_a_share(name: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole number of steps, or a share"):
        luthier.train(config_for(tiny_llama, rows, tmp_path / "run", **{name: 1.5}))


def test_each_validation_set_is_measured(tiny_llama: Path, tmp_path: Path) -> None:
    train = write_rows(tmp_path / "rows.jsonl")
    sets = {
        name: write_rows(tmp_path / f"{name}.jsonl", count=6, seed=seed) for name, seed in (("news", 3), ("talk", 4))
    }
    settings = {"eval_strategy": "steps", "eval_steps": 4, "metric_for_best_model": "eval_talk_loss"}
    config = config_for(tiny_llama, train, tmp_path / "run", **settings, load_best_model_at_end=True)
    config["data"] |= {"validation": [str(path) for path in sets.values()], "evaluate_each": True}
    result = luthier.train(config)
    measured = [line for line in lines(tmp_path / "run") if "eval_loss" in line]
    assert len(measured) == 3
    for name, path in sets.items():  # the same as each alone
        alone = config_for(tiny_llama, train, tmp_path / name, eval_strategy="steps", eval_steps=4)
        alone["data"]["validation"] = str(path)
        luthier.train(alone)
        for both, own in zip(measured, [line for line in lines(tmp_path / name) if "eval_loss" in line], strict=True):
            assert both[f"eval_{name}_loss"] == pytest.approx(own["eval_loss"], rel=1e-6)
            assert both["eval_loss"] != both[f"eval_{name}_loss"]
    assert result.best_metric == min(line["eval_talk_loss"] for line in measured)


def test_a_metric_of_a_set_that_is_not_there(tiny_llama: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "rows.jsonl")
    config = config_for(tiny_llama, rows, tmp_path / "run", eval_strategy="epoch", metric_for_best_model="eval_x_loss")
    config["data"] |= {"validation": [str(rows)], "evaluate_each": True}
    with pytest.raises(ConfigError, match=r"eval_x_loss.*an evaluation gives: .*eval_rows_loss"):
        luthier.train(config)


def test_the_method_meets_the_model_on_its_device(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PiSSA's decompositions, EVA's passes over rows and LLaMA Pro's samples take minutes on a processor."""
    placed: list[int] = []
    seen: list[int] = []
    apply = lora.Lora.apply

    def place(engine: Single, model: Any) -> Any:
        placed.append(id(model))
        return model

    def look(method: lora.Lora, model: Any, how: Any) -> Any:
        seen.append(id(model) if model.device.type != "meta" else 0)
        return apply(method, model, how)

    monkeypatch.setattr(Single, "place", place)
    monkeypatch.setattr(lora.Lora, "apply", look)
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", max_steps=1))
    assert seen == [0, *placed] and len(placed) == 1


@pytest.mark.parametrize(("device", "moved"), [("cuda:1", True), ("cuda:0", False), ("cpu", False), ("mps", False)])
def test_a_model_is_placed_on_a_gpu_where_it_is_not_there_yet(device: str, moved: bool) -> None:
    class Model:
        device = torch.device("cuda:0")

        def to(self, device: torch.device) -> str:
            return f"on {device}"

    model, engine = Model(), object.__new__(Single)
    engine.device = torch.device(device)
    assert engine.place(model) == (f"on {device}" if moved else model)
