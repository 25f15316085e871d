"""transformers' callbacks under luthier's loop: the same events in the same order as under its Trainer."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from transformers import TrainerCallback

import luthier
from luthier.config.loading import load
from luthier.foundation.errors import ConfigError, MissingExtraError
from luthier.training.callbacks import callback_problems, training_arguments
from tests.tiny import config_for
from tests.training.whole_runs import traces

EVENTS = (
    "init_end", "train_begin", "epoch_begin", "step_begin", "substep_end", "pre_optimizer_step", "optimizer_step", "step_end",
    "log", "prediction_step", "evaluate", "save", "epoch_end", "train_end",
)  # fmt: skip


class Recorder(TrainerCallback):
    """Notes every event with what a callback may rely on."""

    seen: ClassVar[list[tuple[Any, ...]]] = []
    stop_epoch_at: ClassVar[int | None] = None


def _note(event: str) -> Any:
    def on_event(self: Recorder, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        more: tuple[Any, ...] = ()
        if event == "log":
            more = tuple(sorted(kwargs["logs"]))
        if event == "evaluate":
            more = tuple(sorted(kwargs["metrics"]))
        if event not in ("init_end", "log") and event != "train_end":
            assert (
                kwargs["model"] is not None and kwargs["optimizer"] is not None and kwargs["lr_scheduler"] is not None
            )
        epoch = None if event in ("init_end", "train_begin") else round(state.epoch or 0, 6)
        self.seen.append((event, state.global_step, epoch, state.max_steps if event == "step_end" else None, *more))
        if event == "step_end" and state.global_step == Recorder.stop_epoch_at:
            control.should_epoch_stop = True
        return control

    return on_event


for _event in EVENTS:
    setattr(Recorder, f"on_{_event}", _note(_event))


def under_trainer(tiny_llama: Path, rows: Path, out: Path, settings: dict[str, Any]) -> list[tuple[Any, ...]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from luthier.commands.setup import set_up
    from luthier.config.loading import load

    setup = set_up(load(config_for(tiny_llama, rows, out)), say=lambda text: None)
    every = [
        {
            "input_ids": list(s.input_ids),
            "labels": [t if w else -100 for t, w in zip(s.input_ids, s.weights, strict=True)],
        }
        for e in setup.data.train
        for s in e.sequences
    ]
    Recorder.seen = []
    trainer = Trainer(
        model=AutoModelForCausalLM.from_pretrained(tiny_llama),
        args=TrainingArguments(output_dir=str(out / "peer"), use_cpu=True, disable_tqdm=True, **settings),
        train_dataset=every[:20],
        eval_dataset=every[20:],
        data_collator=DataCollatorForSeq2Seq(AutoTokenizer.from_pretrained(tiny_llama)),
        callbacks=[Recorder],
    )
    trainer.train()
    return list(Recorder.seen)


@pytest.mark.parametrize(
    ("settings", "stop_epoch_at"),
    [
        ({"num_train_epochs": 2, "logging_steps": 2, "eval_strategy": "epoch", "save_strategy": "epoch"}, None),
        (
            {
                "max_steps": 7,
                "logging_steps": 3,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "save_strategy": "steps",
                "save_steps": 4,
            },
            None,
        ),
        (
            {
                "num_train_epochs": 1.5,
                "logging_steps": 1,
                "eval_strategy": "epoch",
                "save_strategy": "no",
                "gradient_accumulation_steps": 2,
            },
            None,
        ),
        (
            {
                "num_train_epochs": 3,
                "logging_steps": 2,
                "eval_strategy": "no",
                "save_strategy": "no",
                "logging_first_step": True,
            },
            2,
        ),
        (
            {
                "num_train_epochs": 1,
                "logging_steps": 0.25,
                "eval_strategy": "steps",
                "eval_steps": 0.5,
                "save_strategy": "epoch",
            },
            None,
        ),
    ],
)
def test_events_are_those_of_the_trainer(
    settings: dict[str, Any], stop_epoch_at: int | None, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    settings = {"per_device_train_batch_size": 4, "per_device_eval_batch_size": 2, "learning_rate": 1e-3, **settings}
    Recorder.stop_epoch_at = stop_epoch_at
    theirs = under_trainer(tiny_llama, rows, tmp_path, settings)
    validation = tmp_path / "validation.jsonl"
    lines = rows.read_text().splitlines(keepends=True)
    (tmp_path / "train.jsonl").write_text("".join(lines[:20]))
    validation.write_text("".join(lines[20:]))
    config = config_for(tiny_llama, tmp_path / "train.jsonl", tmp_path / "run")
    kept = {key: config["training"][key] for key in ("use_cpu",)}
    config["training"] = {**kept, **settings, "callbacks": [f"{__name__}.Recorder"], "save_total_limit": None}
    if settings["eval_strategy"] != "no":
        config["data"]["validation"] = str(validation)
    config["method"] = "full"
    Recorder.seen = []
    luthier.train(config)

    def comparable(events: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        # the Trainer's last line counts floating point operations, which luthier does not claim to know
        return [tuple(part for part in event if part != "total_flos") for event in events]

    assert comparable(Recorder.seen) == comparable(theirs)


class StopAfterTwo(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_training_stop = state.global_step >= 2
        return control


def test_a_callback_may_stop_the_run(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    result = luthier.train(config_for(tiny_llama, rows, tmp_path / "run", callbacks=[f"{__name__}.StopAfterTwo"]))
    assert result.steps == 2


class StopEpochAtTwo(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_epoch_stop = state.global_step == 2
        return control


def test_an_epoch_that_a_callback_stopped_stays_stopped_on_resume(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """The checkpoint is written in the step that was the epoch's last: a run that goes on from it begins the next."""
    settings = {"max_steps": -1, "num_train_epochs": 2, "save_steps": 2, "save_total_limit": None}
    config = config_for(tiny_llama, rows, tmp_path / "run", **settings, callbacks=[f"{__name__}.StopEpochAtTwo"])
    assert luthier.train(config).steps == 2 + 6
    whole, checkpoints = traces(tmp_path / "run"), tmp_path / "run" / "checkpoints"
    for path in (*(checkpoints / f"step-0000000{step}" for step in (4, 6, 8)), tmp_path / "run" / "final"):
        shutil.rmtree(path)
    luthier.train(config, resume=True)
    assert traces(tmp_path / "run") == whole


class LogAtEpochsEnd(TrainerCallback):
    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_log = True
        return control


def test_a_line_at_an_epochs_end_is_the_same_on_resume(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Gone on with from the epoch's last step, the run writes the line before it makes a step itself."""
    settings = {"max_steps": 12, "logging_steps": 5, "save_steps": 6, "save_total_limit": None}
    config = config_for(tiny_llama, rows, tmp_path / "run", **settings, callbacks=[f"{__name__}.LogAtEpochsEnd"])
    luthier.train(config)
    whole = traces(tmp_path / "run")
    assert [line["step"] for line in whole["lines"]] == [5, 6, 10, 12]
    for path in (tmp_path / "run" / "checkpoints" / "step-00000012", tmp_path / "run" / "final"):
        shutil.rmtree(path)
    luthier.train(config, resume=True)
    assert traces(tmp_path / "run") == whole


class SaveAtThree(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = control.should_evaluate = control.should_log = state.global_step == 3
        return control


def test_every_flag_is_obeyed(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", callbacks=[f"{__name__}.SaveAtThree"], max_steps=6)
    config["training"] |= {
        "eval_strategy": "steps",
        "eval_steps": 100,
        "logging_steps": 100,
        "save_steps": 100,
        "save_total_limit": None,
    }
    config["data"]["validation"] = 0.2
    luthier.train(config)
    assert [path.name for path in sorted((tmp_path / "run" / "checkpoints").iterdir())] == ["step-00000003"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], "eval_loss" in line) for line in lines] == [(3, False), (3, True)]


def test_early_stopping_and_the_best_checkpoint(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """The loss on held-out rows falls, then the rows are learnt by heart: two evaluations that are no better end the run."""
    config = config_for(
        tiny_llama, rows, tmp_path / "run", max_steps=90, learning_rate=0.5, eval_strategy="steps", eval_steps=2,
        save_strategy="steps", save_steps=2, save_total_limit=1, load_best_model_at_end=True, early_stopping_patience=2,
        lr_scheduler_type="constant", max_grad_norm=0,
    )  # fmt: skip
    config["data"]["validation"] = 6
    result = luthier.train(config)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [(line["eval_loss"], line["step"]) for line in lines if "eval_loss" in line]
    best, step = min(evaluated)
    assert result.best_metric == best
    assert result.steps == step + 4 < 90
    names = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert names == sorted({f"step-{step:08d}", f"step-{result.steps:08d}"})
    final = (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes()
    assert final == (tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "adapter_model.safetensors").read_bytes()
    assert final != (tmp_path / "run" / "checkpoints" / names[-1] / "adapter_model.safetensors").read_bytes()


def test_a_metric_that_no_evaluation_gives(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(
        tiny_llama, rows, tmp_path / "run", eval_strategy="steps", eval_steps=2, metric_for_best_model="bleu"
    )
    config["data"]["validation"] = 6
    with pytest.raises(ConfigError, match="an evaluation gives: eval_loss"):
        luthier.train(config)


@pytest.mark.parametrize(
    ("metric", "better"),
    [
        ("loss", False),
        ("eval_dev_loss", False),
        ("eval_edit_distance", False),
        ("dev_edit_distance", False),
        ("eval_a_set_edit_distance", False),
        ("dev_bleu-4", True),
        ("eval_dev_label_macro_f1", True),
    ],
)
def test_the_direction_of_a_metric_is_its_own_on_each_set(
    metric: str, better: bool, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    answers = {
        "predict_with_generate": True,
        "metrics": ["edit_distance", "bleu4", "label_macro_f1"],
    }
    config = config_for(
        tiny_llama, rows, tmp_path / "run", eval_strategy="epoch", metric_for_best_model=metric, **answers
    )
    config["data"] |= {
        "validation": [str(tmp_path / "dev.jsonl"), str(tmp_path / "a_set.jsonl")],
        "evaluate_each": True,
    }
    assert training_arguments(load(config)).greater_is_better is better
    config["training"]["greater_is_better"] = not better
    assert training_arguments(load(config)).greater_is_better is not better


def test_the_direction_of_a_stage_s_metric_is_its_own_on_each_set(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    settings = {"eval_strategy": "epoch", "metric_for_best_model": "eval_dev_mean_squared_error"}
    config = config_for(tiny_llama, rows, tmp_path / "run", **settings)
    config["stage"] = "regression"
    config["data"] |= {"validation": [str(tmp_path / "dev.jsonl")], "evaluate_each": True}
    assert training_arguments(load(config)).greater_is_better is False


def test_tensorboard(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", report_to=["tensorboard"]))
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (tmp_path / "run").rglob("events.out.tfevents.*")
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [item.value for item in accumulator.Scalars("train/loss")] == pytest.approx([line["loss"] for line in lines])


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_wandb_offline(tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"}.items():
        monkeypatch.setenv(name, value)
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", report_to=["wandb"], max_steps=3))
    import wandb

    wandb.finish()
    assert list(tmp_path.rglob("*.wandb")), "the offline run's file"


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"
)
def test_swanlab_local(tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SWANLAB_MODE": "local",
        "SWANLAB_LOG_DIR": str(tmp_path / "swan"),
        "SWANLAB_SAVE_DIR": str(tmp_path / "home"),
    }.items():
        monkeypatch.setenv(name, value)
    luthier.train(config_for(tiny_llama, rows, tmp_path / "run", report_to=["swanlab"], max_steps=3))
    import swanlab

    swanlab.finish()
    assert any((tmp_path / "swan").rglob("*")), "the local run's files"


@pytest.mark.parametrize(
    ("service", "variable", "value"),
    [("wandb", "WANDB_LOG_MODEL", "checkpoint"), ("mlflow", "HF_MLFLOW_LOG_ARTIFACTS", "1")],
)
def test_a_service_that_would_look_for_trainers_checkpoints_is_refused_at_the_start(
    service: str,
    variable: str,
    value: str,
    tiny_llama: Path,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would end the run at its first checkpoint."""
    config = load(config_for(tiny_llama, rows, tmp_path / "run", report_to=[service]))
    monkeypatch.setenv(variable, value)
    (problem,) = callback_problems(config)
    assert f"{variable} is {value}: " in problem
    monkeypatch.setenv(variable, "end" if service == "wandb" else "0")
    assert callback_problems(config) == []


@pytest.mark.parametrize("service", ["tensorboard", "wandb", "swanlab", "mlflow"])
def test_a_missing_service_names_its_extra(
    service: str, tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, service, None)  # importing it now raises ModuleNotFoundError
    with pytest.raises(MissingExtraError, match=rf'pip install "luthier\[{service}\]"'):
        luthier.train(config_for(tiny_llama, rows, tmp_path / "run", report_to=[service]))


@pytest.mark.parametrize(("optim", "package"), [("adamw8bit", "bitsandbytes"), ("schedule_free", "schedulefree")])
def test_missing_packages_are_told_together_before_rows_are_read(
    optim: str, package: str,
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    for missing in ("wandb", "swanlab", package):
        monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ConfigError) as caught:
        luthier.train(config_for(tiny_llama, rows, tmp_path / "run", report_to=["wandb", "swanlab"], optim=optim))
    told = ("luthier[wandb]", "luthier[swanlab]", f"training.optim: {optim} needs the package '{package}'")
    assert [part in str(caught.value) for part in told] == [True] * 3
    assert "data:" not in "".join(capsys.readouterr())


def test_a_callback_beside_the_user_is_pointed_at(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine_alone.py").write_text("")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"mine_alone stands in this folder, .* set PYTHONPATH=\."):
        luthier.train(config_for(tiny_llama, rows, tmp_path / "run", callbacks=["mine_alone.Stop"]))


def test_unknown_services_and_callbacks_are_named_together(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    wrong = {"report_to": ["tensorbord"], "callbacks": ["no_such_module.Callback", "json.JSONDecoder"]}
    with pytest.raises(ConfigError) as caught:
        luthier.train(config_for(tiny_llama, rows, tmp_path / "run", **wrong))
    assert "tensorbord" in str(caught.value)
    assert "no_such_module" in str(caught.value)
    assert "no TrainerCallback" in str(caught.value)


def test_losses_do_not_depend_on_the_recorder(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    Recorder.stop_epoch_at = None
    losses = []
    for callbacks in ([], [f"{__name__}.Recorder"]):
        out = tmp_path / str(len(callbacks))
        luthier.train(config_for(tiny_llama, rows, out, callbacks=callbacks, max_steps=4))
        losses.append([json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()])
    assert losses[0] == losses[1]
    assert all(torch.isfinite(torch.tensor(losses[0])))
