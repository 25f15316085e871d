"""The bridge to transformers' callbacks: its own handler, arguments, state and control, driven in its Trainer's order."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from luthier.config.metric_choice import given_by
from luthier.config.plugins import METRICS, STAGES
from luthier.config.schema import RunConfig
from luthier.foundation.errors import ConfigError, import_extra
from luthier.model.plain_peft import import_peft

import_peft()  # transformers' Trainer imports it too

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments  # noqa: E402
from transformers.trainer_callback import (  # noqa: E402
    CallbackHandler,
    DefaultFlowCallback,
    EarlyStoppingCallback,
    ExportableState,
)

from luthier.training.schedule import Schedule  # noqa: E402
from luthier.training.stage import Stage  # noqa: E402

# service -> (module that must be there, luthier's extra)
SERVICES = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "swanlab": ("swanlab", "swanlab"),
    "mlflow": ("mlflow", "mlflow"),
}
# service -> (variable by which its callback sends every checkpoint from output_dir/checkpoint-STEP, where Trainer writes
# it and luthier does not, its values that do so, what to do)
SENDS_CHECKPOINTS = {
    "wandb": ("WANDB_LOG_MODEL", ("CHECKPOINT",), "set it to end, which sends the model when the run has ended"),
    "mlflow": ("HF_MLFLOW_LOG_ARTIFACTS", ("1", "ON", "YES", "TRUE"), "unset it"),
}


CHOSEN_BY = "ChosenBy"  # beside the callbacks' states in trainer_state.json
# what an evaluation gives, without eval_
EVALUATION_METRICS = ("loss", "runtime", "samples_per_second", "steps_per_second")


def training_arguments(config: RunConfig) -> TrainingArguments:
    """A real TrainingArguments that says what this run does."""
    training = config.training
    arguments = TrainingArguments(
        output_dir=config.output_dir,
        num_train_epochs=training.num_train_epochs,
        max_steps=training.max_steps,
        per_device_train_batch_size=training.per_device_train_batch_size,
        per_device_eval_batch_size=training.per_device_eval_batch_size,
        gradient_accumulation_steps=training.gradient_accumulation_steps,
        learning_rate=config.learning_rate(),
        lr_scheduler_type=training.lr_scheduler_type,
        lr_scheduler_kwargs=dict(training.lr_scheduler_kwargs) or None,
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta1=training.adam_beta1,
        adam_beta2=training.adam_beta2,
        adam_epsilon=training.adam_epsilon,
        max_grad_norm=training.max_grad_norm,
        activation_checkpointing=training.gradient_checkpointing,
        bf16=training.bf16,
        fp16=training.fp16,
        tf32=training.tf32 if _cuda() and not training.use_cpu else None,  # elsewhere it refuses the setting
        use_cpu=training.use_cpu or not _has_accelerator(),
        seed=training.seed,
        data_seed=training.data_seed,
        dataloader_num_workers=training.dataloader_num_workers,
        eval_strategy=training.eval_strategy,
        eval_steps=training.eval_steps,
        save_strategy=training.save_strategy,
        save_steps=training.save_steps,
        save_total_limit=training.save_total_limit,
        ddp_timeout=training.ddp_timeout,
        load_best_model_at_end=training.load_best_model_at_end,
        # a metric is chosen only where there are evaluations to choose it from
        metric_for_best_model=training.metric_for_best_model if training.eval_strategy != "no" else None,
        greater_is_better=_greater_is_better(config),
        logging_steps=training.logging_steps,
        logging_first_step=training.logging_first_step,
        report_to=training.report_to or "none",
        run_name=training.run_name or Path(config.output_dir).name,
        disable_tqdm=True,
    )
    # a name of theirs where they have the optimizer; it is only shown
    arguments.optim = training.optim.transformers_name or training.optim.name
    return arguments


def chosen_by(config: RunConfig) -> dict[str, Any]:
    """What an evaluation is the best by: the metric and its direction, and of one of answers how it and they are made; empty
    where there are no evaluations."""
    if config.training.eval_strategy == "no":
        return {}
    metric = config.training.metric_for_best_model.removeprefix("eval_")
    told = {"metric_for_best_model": metric, "greater_is_better": _greater_is_better(config)}
    own = _metric_of(config, metric)
    for options in config.training.answer_metrics():
        if own in given_by(options):
            told |= {"metric": options.model_dump(mode="json"), "generation": config.generation.model_dump(mode="json")}
    return told


def is_still_chosen_by(config: RunConfig, trainer_state: Mapping[str, Any]) -> bool:
    """Whether a checkpoint's best evaluation was chosen by what the config says now.

    Args:
        trainer_state: the checkpoint's, as `Bridge.export` gave it.
    """
    kept = (trainer_state.get("stateful_callbacks") or {}).get(CHOSEN_BY)
    if kept is None:
        return True
    now = chosen_by(config)
    # one of before may tell less
    return kept["args"].keys() <= now.keys() and all(now[name] == value for name, value in kept["args"].items())


def _greater_is_better(config: RunConfig) -> bool:
    """The direction of metric_for_best_model: the one set, else the metric's own; of one from elsewhere transformers'."""
    training = config.training
    metric = _metric_of(config, training.metric_for_best_model.removeprefix("eval_"))
    if training.greater_is_better is not None:
        return training.greater_is_better
    if metric is None:
        return not training.metric_for_best_model.endswith("loss")
    owner = next((o.name for o in training.answer_metrics() if metric in given_by(o)), metric)  # type: ignore[attr-defined]
    better: bool = METRICS.load(owner).GREATER_IS_BETTER
    return better


def _metric_of(config: RunConfig, name: str) -> str | None:
    """Which of `evaluation_metrics` a name in an evaluation's line is of: under data.evaluate_each a set's stands before it."""
    apart = config.data.evaluate_each
    fit = [metric for metric in evaluation_metrics(config) if name == metric or (apart and name.endswith(f"_{metric}"))]
    return max(fit, key=len, default=None)  # my_label_macro_f1 ends with macro_f1 too


def evaluation_metrics(config: RunConfig) -> tuple[str, ...]:
    """What an evaluation gives beside the loss: the stage's metrics, and those of generated answers."""
    stage: Stage = STAGES.load(config.stage.name).build(config.stage)
    return (*stage.metrics, *(name for options in config.training.answer_metrics() for name in given_by(options)))


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _has_accelerator() -> bool:
    import torch

    return torch.cuda.is_available() or torch.backends.mps.is_available()


def callback_problems(config: RunConfig) -> list[str]:
    """What is wrong with the config's services, callbacks and metric, one sentence each."""
    training = config.training
    problems = [
        f"training.report_to names {service!r}; known: {', '.join(SERVICES)}"
        for service in training.report_to
        if service not in SERVICES
    ]
    for service in training.report_to:
        variable, values, remedy = SENDS_CHECKPOINTS.get(service, ("", (), ""))
        if os.environ.get(variable, "").upper() in values:
            problems.append(
                f"training.report_to: {service} would look for checkpoints where luthier writes none, as {variable} is "
                f"{os.environ[variable]}: {remedy}"
            )
    for path in training.callbacks:
        try:
            _load_callback(path)
        except Exception as error:  # whatever the user's own module raises when it is imported or built
            problems.append(f"training.callbacks: {path!r} could not be loaded: {error}{_where_it_stands(path, error)}")
    # the names of several sets are known once their files are
    endings = tuple(f"_{name}" for name in ("loss", *evaluation_metrics(config)))
    if not (config.data.evaluate_each and training.metric_for_best_model.endswith(endings)):
        problems += metric_problems(config, ())
    return problems


def metric_problems(config: RunConfig, sets: Iterable[str]) -> list[str]:
    """Whether an evaluation gives metric_for_best_model.

    Args:
        sets: names of the validation sets that are measured apart.
    """
    training = config.training
    own = evaluation_metrics(config)
    of_sets = (f"{name}_{value}" for name in sets for value in ("loss", *own))
    known = [f"eval_{name}" for name in (*EVALUATION_METRICS, *own, *of_sets)]
    if training.eval_strategy == "no" or f"eval_{training.metric_for_best_model.removeprefix('eval_')}" in known:
        return []
    return [
        f"training.metric_for_best_model is {training.metric_for_best_model!r}, but an evaluation gives: {', '.join(known)}"
    ]


def import_service(service: str) -> None:
    """MissingExtraError where a service's package is absent."""
    module, extra = SERVICES[service]
    import_extra(module, extra=extra, purpose=f"training.report_to: {service}")


def make_callbacks(config: RunConfig) -> list[TrainerCallback]:
    """The config's callbacks: services, early stopping, the user's own.

    Raises:
        MissingExtraError: a service's package is absent. ConfigError: an unknown service or callback.
    """
    from transformers.integrations import get_reporting_integration_callbacks

    training = config.training
    problems = callback_problems(config)
    if problems:
        raise ConfigError(problems)
    for service in training.report_to:
        import_service(service)
    own = [_load_callback(path) for path in training.callbacks]
    stock = [service for service in training.report_to if service != "swanlab"]
    services = [callback() for callback in get_reporting_integration_callbacks(stock)]
    for service in services:
        if type(service).__name__ == "TensorBoardCallback" and service.logging_dir is None:
            # a folder of its own, which --overwrite knows; transformers' default is output_dir/runs/DATE
            service.logging_dir = str(Path(config.output_dir) / "tensorboard")
    if "swanlab" in training.report_to:
        # transformers' own one calls swanlab.get_run() and expects None where there is no run; since swanlab 0.8 that
        # raises, and SwanLab ships the callback that fits each of its versions
        from swanlab.integration.transformers import SwanLabCallback

        services.append(SwanLabCallback(experiment_name=training.run_name or Path(config.output_dir).name))
    early = (
        [EarlyStoppingCallback(training.early_stopping_patience, training.early_stopping_threshold)]
        if training.early_stopping_patience is not None
        else []
    )
    return [*services, *early, *own]


def _load_callback(path: str) -> TrainerCallback:
    module, _, name = path.rpartition(".")
    if not module:
        raise ImportError("it must be a dotted path such as my_package.MyCallback")
    made = getattr(importlib.import_module(module), name)()
    if not isinstance(made, TrainerCallback):
        raise TypeError("it is no TrainerCallback")
    return made


def _where_it_stands(path: str, error: Exception) -> str:
    """What to do about a module that Python does not find though its file is here: the command's folder is not searched."""
    top = path.split(".")[0]
    here = Path(f"{top}.py").is_file() or Path(top, "__init__.py").is_file()
    if isinstance(error, ModuleNotFoundError) and error.name == top and here:
        return f"; {top} stands in this folder, which Python does not search: set PYTHONPATH=."
    return ""


class Bridge:
    """State, control and events of one run, as transformers' Trainer has them.

    `fire("step_end")` calls `on_step_end` of every callback, and takes the control that comes back.
    """

    def __init__(self, config: RunConfig, schedule: Schedule, callbacks: list[TrainerCallback]) -> None:
        self.args = training_arguments(config)
        self._chosen_by = chosen_by(config)
        self.control = TrainerControl()
        self._callbacks = [DefaultFlowCallback(), *callbacks]
        self.state = TrainerState(stateful_callbacks=self._stateful())
        self.state.max_steps = schedule.total_steps
        self.state.num_train_epochs = schedule.total_epochs
        self.state.train_batch_size = config.training.per_device_train_batch_size
        self.state.compute_steps(self.args, schedule.total_steps)
        self.handler: Any = None

    def attach(self, model: nn.Module, tokenizer: Any, optimizer: Optimizer, scheduler: LambdaLR) -> None:
        """Name what the callbacks are shown."""
        self.handler = CallbackHandler(self._callbacks, model, tokenizer, optimizer, scheduler)

    def fire(self, event: str, **more: Any) -> None:
        """Call an event of every callback."""
        self.control = getattr(self.handler, f"on_{event}")(self.args, self.state, self.control, **more)

    def log(self, values: dict[str, Any]) -> None:
        """Add a line to the state's history and call on_log, as Trainer.log does."""
        values = {**values, "epoch": self.state.epoch}
        self.state.log_history.append({**values, "step": self.state.global_step})
        self.fire("log", logs=values)

    def note_best(self, metrics: dict[str, float]) -> bool:
        """Remember the best value of metric_for_best_model, as Trainer._determine_best_metric does; True if this is it."""
        name = self.args.metric_for_best_model
        if name is None:
            return False
        value = metrics[name if name.startswith("eval_") else f"eval_{name}"]
        best = self.state.best_metric
        better = best is None or (value > best if self.args.greater_is_better else value < best)
        if better:
            self.state.best_metric = value
            self.state.best_global_step = self.state.global_step
        return better

    def export(self) -> dict[str, Any]:
        """The state as JSON values, with that of the callbacks that have one."""
        import dataclasses

        self.state.stateful_callbacks = {
            **{type(item).__name__: item.state() for item in self._stateful()},
            CHOSEN_BY: {"args": self._chosen_by, "attributes": {}},
        }
        return dataclasses.asdict(self.state)

    def restore(self, value: dict[str, Any]) -> None:
        """Put back what `export` gave."""
        names = set(TrainerState.__dataclass_fields__)
        for key, kept in value.items():
            # steps between events follow the config of now, which may have been changed on purpose; what was written is the
            # first rank's, and the others go on being others
            if key in names and key not in (
                "max_steps",
                "num_train_epochs",
                "logging_steps",
                "eval_steps",
                "save_steps",
                "is_world_process_zero",
                "is_local_process_zero",
            ):
                setattr(self.state, key, kept)
        saved = value.get("stateful_callbacks") or {}
        for item in self._stateful():
            kept = saved.get(type(item).__name__)
            if isinstance(kept, dict):
                for name, setting in {
                    **(kept["args"] if isinstance(item, TrainerControl) else {}),
                    **kept["attributes"],
                }.items():
                    setattr(item, name, setting)

    def _stateful(self) -> list[Any]:
        return [item for item in [*self._callbacks, self.control] if isinstance(item, ExportableState)]
