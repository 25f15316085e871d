"""Every setting of the loop acts: changing it changes the run. A new setting without a line here fails the first test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.config.training_section import TrainingConfig
from tests.tiny import config_for, write_rows

Run = dict[str, Any]


def losses(run: Run) -> Any:
    return [line["loss"] for line in run["lines"] if "loss" in line]


def rates(run: Run) -> Any:
    return [line["learning_rate"] for line in run["lines"] if "loss" in line]


def steps(run: Run) -> Any:
    return [line["step"] for line in run["lines"]]


def evaluations(run: Run) -> Any:
    return [line["step"] for line in run["lines"] if "eval_loss" in line]


def checkpoints(run: Run) -> Any:
    return run["checkpoints"]


def argument(name: str) -> Callable[[Run], Any]:
    """What callbacks see: for settings whose effect is theirs."""
    return lambda run: run["arguments"][name]


# setting -> (settings of both runs, the changed one's value, what must differ)
CHANGES: dict[str, tuple[dict[str, Any], Any, Callable[[Run], Any]]] = {
    "num_train_epochs": ({"max_steps": -1, "num_train_epochs": 1}, 2, steps),
    "max_steps": ({}, 3, steps),
    "per_device_train_batch_size": ({}, 2, losses),
    "per_device_eval_batch_size": ({"eval_strategy": "steps", "eval_steps": 2}, 1, lambda run: run["prediction_steps"]),
    "gradient_accumulation_steps": ({}, 2, losses),
    "learning_rate": ({}, 1e-4, losses),
    "lr_scheduler_type": ({}, "cosine", rates),
    "lr_scheduler_kwargs": ({"lr_scheduler_type": "polynomial"}, {"power": 3.0}, rates),
    "warmup_steps": ({}, 2, rates),
    "weight_decay": ({}, 0.5, losses),
    "adam_beta1": ({}, 0.5, losses),
    "adam_beta2": ({}, 0.5, losses),
    "adam_epsilon": ({}, 1e-2, losses),
    "max_grad_norm": ({}, 1e-3, lambda run: run["weights"]),
    "gradient_checkpointing": ({}, True, lambda run: run["layer_passes"]),
    "bf16": ({}, True, losses),
    "fp16": ({}, True, losses),
    "pure_bf16": ({}, True, losses),
    "seed": ({}, 7, losses),
    "data_seed": ({}, 7, losses),
    "dataloader_num_workers": ({}, 1, lambda run: run["workers"]),
    "eval_strategy": ({"eval_strategy": "steps"}, "epoch", evaluations),
    "eval_steps": ({"eval_strategy": "steps", "eval_steps": 4}, 2, evaluations),
    "predict_with_generate": (
        {"eval_strategy": "steps", "eval_steps": 4},
        True,
        lambda run: [line.get("eval_rouge-l") for line in run["lines"]],
    ),
    "metrics": (
        {"eval_strategy": "steps", "eval_steps": 8, "predict_with_generate": True},
        [{"name": "chrf", "char_order": 2}],
        lambda run: run["lines"][-1].keys(),
    ),
    "save_strategy": ({}, "no", checkpoints),
    "save_steps": ({}, 2, checkpoints),
    "save_total_limit": ({}, 1, checkpoints),
    "load_best_model_at_end": (
        # the largest loss counts as the best, so the best is not the last
        {"eval_strategy": "steps", "eval_steps": 4, "greater_is_better": True},
        True,
        lambda run: run["weights"],
    ),
    "metric_for_best_model": (
        {"eval_strategy": "steps", "eval_steps": 4},
        "eval_runtime",
        lambda run: run["best_metric"],
    ),
    "greater_is_better": (
        {"eval_strategy": "steps", "eval_steps": 4, "learning_rate": 1.0, "lr_scheduler_type": "constant"},
        True,
        lambda run: run["best_metric"],
    ),
    "early_stopping_patience": (
        # a loss that falls is then no improvement
        {"eval_strategy": "steps", "eval_steps": 1, "greater_is_better": True},
        1,
        steps,
    ),
    "early_stopping_threshold": (
        {"eval_strategy": "steps", "eval_steps": 1, "early_stopping_patience": 2, "learning_rate": 1e-4},
        1e3,
        steps,
    ),
    "logging_steps": ({}, 3, steps),
    "logging_first_step": ({"logging_steps": 3}, True, steps),
    "report_to": ({}, ["tensorboard"], lambda run: run["event_files"]),
    "run_name": ({}, "another", argument("run_name")),
    "callbacks": ({}, [f"{__name__}.Halve"], losses),
    "prefix_sharing": ({"per_device_train_batch_size": 8}, "off", lambda run: run["tokens_computed"]),
    "grouping": ({}, "within_buffer", losses),
    "grouping_buffer_size": ({"grouping": "within_buffer"}, 8, losses),
    "tokens_per_batch": ({}, 50, lambda run: run["tokens_computed"]),
    "optim": ({}, "tests.training.plain_sgd", losses),
}


def test_every_setting_has_a_line_here() -> None:
    # their own tests below, in test_ranks.py, test_trunk.py and planning/test_batch_tokens.py: this machine may have no CUDA
    # device, and what a budget holds differs from machine to machine
    elsewhere = {"trunk_cache_limit_gib", "memory_budget_gib", "use_cpu", "tf32", "engine", "ddp_timeout"}
    assert set(CHANGES) | elsewhere == set(TrainingConfig.model_fields)


from transformers import TrainerCallback  # noqa: E402


class Halve(TrainerCallback):
    """A user's own callback that reaches into the optimizer."""

    def on_step_begin(self, args: Any, state: Any, control: Any, optimizer: Any = None, **kwargs: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] *= 0.5


class Watch(TrainerCallback):
    """Counts what the run's files do not show."""

    arguments: dict[str, Any]
    prediction_steps = 0
    layer_passes = 0
    tokens_computed: list[int]

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        Watch.arguments, Watch.prediction_steps, Watch.layer_passes = args.to_dict(), 0, 0
        Watch.tokens_computed = []
        for name, module in model.named_modules():
            if name.endswith("input_layernorm"):
                module.register_forward_hook(self.count)

    def count(self, module: Any, inputs: Any, output: Any) -> None:
        Watch.layer_passes += 1
        Watch.tokens_computed.append(output.shape[1])

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        Watch.prediction_steps += 1


def observe(tiny_llama: Path, rows: Path, out: Path, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Run:
    import torch.utils.data

    seen = {"workers": 0}
    loader = torch.utils.data.DataLoader.__init__

    def noted(self: Any, *args: Any, **kwargs: Any) -> None:
        seen["workers"] = kwargs.get("num_workers", 0)
        loader(self, *args, **kwargs)

    monkeypatch.setattr(torch.utils.data.DataLoader, "__init__", noted)
    own = [*settings.pop("callbacks", []), f"{__name__}.Watch"]
    config = config_for(tiny_llama, rows, out, **{"max_steps": 8, **settings, "callbacks": own})
    if config["training"].get("eval_strategy", "no") != "no":
        config["data"]["validation"] = 4
    result = luthier.train(config)
    return {
        **seen,
        "lines": [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()],
        "checkpoints": sorted(path.name for path in (out / "checkpoints").glob("step-*")),
        "weights": (out / "final" / "adapter_model.safetensors").read_bytes(),
        "best_metric": result.best_metric,
        "event_files": bool(list(out.rglob("events.out.tfevents.*"))),
        "arguments": Watch.arguments,
        "prediction_steps": Watch.prediction_steps,
        "layer_passes": Watch.layer_passes,
        "tokens_computed": Watch.tokens_computed,
    }


@pytest.fixture(scope="module")
def unchanged(
    tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[dict[str, Any], pytest.MonkeyPatch], Run]:
    """The run of the settings that both runs share: most share none, and one run is enough for them."""
    runs: dict[str, Run] = {}

    def of(shared: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Run:
        if repr(shared) not in runs:
            folder = tmp_path_factory.mktemp("unchanged")
            rows = write_rows(folder / "rows.jsonl")
            runs[repr(shared)] = observe(tiny_llama, rows, folder / "run", dict(shared), monkeypatch)
        return runs[repr(shared)]

    return of


@pytest.mark.parametrize("name", sorted(CHANGES))
def test_changing_it_changes_the_run(
    name: str,
    unchanged: Callable[..., Run],
    tiny_llama: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shared, value, differs = CHANGES[name]
    before = unchanged(shared, monkeypatch)
    after = observe(tiny_llama, rows, tmp_path / "run", {**shared, name: value}, monkeypatch)
    assert differs(before) != differs(after)


@pytest.mark.parametrize("name", ["gradient_checkpointing", "dataloader_num_workers"])
def test_how_it_is_computed_does_not_change_the_numbers(
    name: str,
    unchanged: Callable[..., Run],
    tiny_llama: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = unchanged({}, monkeypatch)
    after = observe(tiny_llama, rows, tmp_path / "run", {name: CHANGES[name][1]}, monkeypatch)
    assert losses(after) == pytest.approx(losses(before), rel=1e-6)


def test_tf32_is_switched() -> None:
    import torch

    from luthier.training.engines.single import build

    kept = torch.backends.cuda.matmul.allow_tf32
    try:
        for wanted in (True, False):
            torch.backends.cuda.matmul.allow_tf32 = not wanted
            build(TrainingConfig(tf32=wanted), torch.device("cuda"))
            assert torch.backends.cuda.matmul.allow_tf32 is wanted
    finally:
        torch.backends.cuda.matmul.allow_tf32 = kept


def test_tf32_without_cuda_is_said(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", tf32=True, max_steps=1))
    assert "training.tf32 has no effect here" in capsys.readouterr().err


def test_use_cpu_chooses(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from luthier.foundation.devices import choose_device

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(False).type == "cuda"
    assert choose_device(True).type == "cpu"


def test_slow_precisions_are_said_with_their_cost(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from luthier.foundation import devices
    from luthier.training import precision

    monkeypatch.setattr(devices, "cpu_name_and_flags", lambda: ("a processor", ("avx2",)))
    # what such a processor measures; this one may have the units
    monkeypatch.setattr(precision, "matmul_gflops", lambda name, device: {"float32": 150.0}.get(name, 0.9))
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", bf16=True, max_steps=2))
    said = capsys.readouterr().err
    assert "warning: this device has no bfloat16 units" in said
    assert "run at 0.9 GFLOP/s instead of 150 in float32, 167 times slower" in said
