"""The config's `training`: the loop's settings, named as in transformers' TrainingArguments."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, SerializeAsAny, model_validator

from luthier.config.metric_choice import given_by, metric_options
from luthier.config.plugins import OPTIMIZERS
from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions, Section, one_to_list


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"must be a whole number of steps, or a share of all steps below 1; found {value:g}")
    return value


def _words(words: Mapping[bool, str]) -> BeforeValidator:
    """YAML reads a bare `no` or `off` as false, and `on` as true."""
    return BeforeValidator(lambda value: words.get(value, value) if isinstance(value, bool) else value)


Strategy = Annotated[Literal["no", "steps", "epoch"], _words({False: "no"})]
Sharing = Annotated[Literal["auto", "on", "off"], _words({False: "off", True: "on"})]
Grouping = Annotated[Literal["off", "within_step", "within_buffer"], _words({False: "off"})]


def optimizer_options(value: Any = "adamw") -> Any:
    """An optimizer's options from its name, or from a mapping with a name."""
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, dict):
        return settings
    return OPTIMIZERS.load(settings.get("name", "adamw")).Options.model_validate(settings)


AnswerMetric = Annotated[
    SerializeAsAny[BaseModel],
    BeforeValidator(metric_options, json_schema_input_type=str | dict[str, Any]),
]
StepCount = Annotated[float, Field(gt=0), AfterValidator(_whole_or_share)]


class TrainingConfig(Section):
    """The loop. Names and meanings are those of transformers' TrainingArguments."""

    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the data; may be fractional.")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; overrides num_train_epochs. -1: off.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Examples per batch and device.")
    per_device_eval_batch_size: int = Field(8, ge=1, description="Examples per evaluation batch and device.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimizer step.")
    prefix_sharing: Sharing = Field(
        "auto",
        description="Lay down, and compute, once what several sequences of a batch begin with. auto: on the segmented route, "
        "where nothing is dropped out and no router's loss counts tokens; on: also with dropout, which then drops the same "
        "for all of them.",
    )
    grouping: Grouping = Field(
        "within_step",
        description="Bring examples that begin alike into the same batch. within_step: which examples form a step does not "
        "change; within_buffer: the examples of a step are chosen so too, so its gradient is no independent draw any more.",
    )
    grouping_buffer_size: int = Field(
        1024, ge=1, description="Examples that grouping within_buffer sorts together, rounded up to whole steps."
    )
    tokens_per_batch: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        None,
        description="A batch holds at most so many tokens, what is shared counted once, however many examples that is: the "
        "examples of a step are dealt out anew. auto: as many as memory_budget_gib is predicted to hold, found once at the "
        "run's start. Unset: per_device_train_batch_size examples.",
    )
    memory_budget_gib: float | None = Field(
        None,
        gt=0,
        description="With tokens_per_batch auto: GiB that a process may take on its device, weights and the process itself "
        "included. Unset: nine tenths of what is free at the start.",
    )
    trunk_cache_limit_gib: float = Field(
        16.0,
        ge=0,
        description="Where the lowest layers do not learn, keep the states that leave them on disk, so that later epochs "
        "begin above them; at most so many GiB, else they are computed in every epoch. 0: never.",
    )
    learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate; unset: the method's recommendation, times what the optimizer's differs by.",
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "cosine_with_min_lr", "constant", "constant_with_warmup",
        "polynomial", "inverse_sqrt", "warmup_stable_decay",
    ] = Field("linear", description="Shape of the learning rate after the warm-up.")  # fmt: skip
    lr_scheduler_kwargs: dict[str, float] = Field(
        default_factory=dict,
        description="Further settings of the schedule: num_cycles of the cosines, min_lr or min_lr_rate, power and lr_end, "
        "timescale, num_decay_steps (below 1: a share of all steps) and min_lr_ratio.",
    )
    warmup_steps: Annotated[float, AfterValidator(_whole_or_share)] = Field(
        0, ge=0, description="Steps of linear warm-up; below 1: a share of all steps."
    )
    optim: Annotated[SerializeAsAny[OptimizerOptions], BeforeValidator(optimizer_options)] = Field(
        default_factory=optimizer_options,
        description="How gradients become updates (default adamw); docs/optimizers.md compares them. An optimizer of your "
        "own: a dotted path.",
    )
    weight_decay: float = Field(
        0.0, ge=0, description="Decoupled weight decay; none on norms, biases and other vectors."
    )
    adam_beta1: float = Field(
        0.9, ge=0, lt=1, description="Decay of the first moment, of the optimizers with AdamW inside."
    )
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of the second moment, of the same.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Epsilon of the same.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0: no clipping.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in backward: less memory, more time."
    )
    bf16: bool = Field(False, description="Autocast to bfloat16.")
    fp16: bool = Field(False, description="Autocast to float16, with loss scaling.")
    pure_bf16: bool = Field(False, description="Keep trainable weights in bfloat16 too.")
    tf32: bool | None = Field(None, description="TensorFloat-32 matrix products on CUDA; unset: torch's default.")
    engine: str = Field(
        "auto",
        description="What computes: single (one process, one device), ddp (every process that torchrun started holds the "
        "whole model), a dotted path; auto: ddp where a launcher started several processes, else single.",
    )
    ddp_timeout: int = Field(
        1800,
        ge=1,
        description="Seconds that ranks wait for each other before they give up; with predict_with_generate an evaluation's "
        "answers must all be there by then.",
    )
    use_cpu: bool = Field(False, description="Train on the CPU even where there is a GPU.")
    seed: int = Field(42, ge=0, description="All random choices are functions of it.")
    data_seed: int | None = Field(None, ge=0, description="Seed of data order and splits; unset: seed.")
    dataloader_num_workers: int = Field(
        0, ge=0, description="Processes that pack batches ahead; 0: the training process."
    )
    eval_strategy: Strategy = Field("no", description="When to evaluate on data.validation.")
    eval_steps: StepCount | None = Field(
        None, description="Steps between evaluations; below 1: a share of all steps. Unset: logging_steps."
    )
    predict_with_generate: bool = Field(
        False,
        description="Evaluations, and data.test at the end, generate the last answer of each row (as generation says) and "
        "take metrics of it; they may choose the best checkpoint and stop early.",
    )
    metrics: Annotated[list[AnswerMetric], BeforeValidator(one_to_list)] = Field(
        default_factory=list,
        description="With predict_with_generate: names of metrics of written answers, or mappings with their options "
        "(docs/evaluation.md); unset: rouge and bleu4.",
    )
    save_strategy: Strategy = Field(
        "epoch",
        description="When to write a checkpoint. With data.streaming, whose only epoch may be the whole run, unset means "
        "steps; but epoch where load_best_model_at_end takes the best of evaluations by epoch.",
    )
    save_steps: StepCount = Field(500, description="Steps between checkpoints; below 1: a share of all steps.")
    save_total_limit: int | None = Field(2, ge=1, description="Checkpoints to keep, the best one besides; null: all.")
    load_best_model_at_end: bool = Field(
        False, description="final/ gets the checkpoint with the best metric_for_best_model."
    )
    metric_for_best_model: str = Field("loss", description="A key of the evaluation's line, with or without eval_.")
    greater_is_better: bool | None = Field(
        None, description="Direction of that metric; unset: the metric's own; of one from elsewhere, false for losses."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without improvement."
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="What counts as an improvement.")
    logging_steps: StepCount = Field(
        10, description="Steps between lines of metrics.jsonl; below 1: a share of all steps."
    )
    logging_first_step: bool = Field(False, description="Write a line for the first step too.")
    report_to: Annotated[list[str], BeforeValidator(one_to_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list,
        description="tensorboard, wandb, swanlab, mlflow: through the callbacks that transformers or the service itself ships.",
    )
    run_name: str | None = Field(
        None, description="Name of the run at those services; unset: the output folder's name."
    )
    callbacks: list[str] = Field(default_factory=list, description="Dotted paths of your own TrainerCallback classes.")

    @model_validator(mode="before")
    @classmethod
    def _schedule_of_the_optimizer(cls, value: Any) -> Any:
        """An optimizer that takes a certain schedule gets it, unless another is asked for, which `_agree` refuses."""
        if not isinstance(value, dict) or "lr_scheduler_type" in value:
            return value
        schedules = getattr(value.get("optim"), "schedules", ())
        return {**value, "lr_scheduler_type": schedules[0]} if schedules else value

    @model_validator(mode="after")
    def _agree(self) -> TrainingConfig:
        problems = []
        if self.bf16 and self.fp16:
            problems.append("bf16 and fp16 are both true: choose one")
        if self.pure_bf16 and self.fp16:
            problems.append("pure_bf16 and fp16 exclude each other")
        if self.max_steps == 0:
            problems.append("max_steps is 0: give a positive number, or -1 for num_train_epochs")
        if self.load_best_model_at_end:
            if self.eval_strategy == "no" or self.save_strategy != self.eval_strategy:
                problems.append(
                    f"load_best_model_at_end needs evaluation and saving at the same moments, found "
                    f"eval_strategy={self.eval_strategy}, save_strategy={self.save_strategy}"
                )
            elif self.eval_strategy == "steps" and not self._saves_on_evaluations():
                problems.append(
                    f"load_best_model_at_end needs save_steps to be a multiple of eval_steps, found "
                    f"save_steps={self.save_steps:g}, eval_steps={self.eval_interval():g}"
                )
        names = [name for options in self.metrics for name in given_by(options)]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"metrics give {', '.join(twice)} twice: choose each once")
        if self.grouping == "within_buffer" and self.prefix_sharing == "off":
            problems.append(
                "grouping is within_buffer, which fills a step with examples that begin alike, so that their beginning is "
                "computed once, but prefix_sharing is off: set prefix_sharing to auto, or grouping to within_step"
            )
        problems += self._settings_without_effect()
        schedules = self.optim.schedules
        if schedules and self.lr_scheduler_type not in schedules:
            problems.append(
                f"lr_scheduler_type is {self.lr_scheduler_type}, but optim {self.optim.name} takes only {' or '.join(schedules)}"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _settings_without_effect(self) -> list[str]:
        """Settings that were changed from their default and that other settings keep from acting."""
        rules = {
            "eval_steps": (self.eval_strategy == "steps", "eval_strategy steps"),
            "save_steps": (self.save_strategy == "steps", "save_strategy steps"),
            "metrics": (self.predict_with_generate, "predict_with_generate true"),
            "early_stopping_patience": (self.eval_strategy != "no", "eval_strategy steps or epoch"),
            "early_stopping_threshold": (self.early_stopping_patience is not None, "early_stopping_patience"),
            "metric_for_best_model": (self.eval_strategy != "no", "eval_strategy steps or epoch"),
            "greater_is_better": (self.eval_strategy != "no", "eval_strategy steps or epoch"),
            "memory_budget_gib": (self.tokens_per_batch == "auto", "tokens_per_batch auto"),
            "grouping_buffer_size": (self.grouping == "within_buffer", "grouping within_buffer"),
            "warmup_steps": (
                self.lr_scheduler_type != "constant",
                "another lr_scheduler_type, such as constant_with_warmup",
            ),
        }
        unread = OPTIMIZER_SETTINGS - self.optim.reads
        rules |= dict.fromkeys(sorted(unread), (False, f"another optim than {self.optim.name}"))
        found = []
        for name, (acts, needed) in rules.items():
            value = getattr(self, name)
            if not acts and value != type(self).model_fields[name].get_default(call_default_factory=True):
                found.append(f"{name}={value} has no effect: it needs {needed}")
        return found

    def answer_metrics(self) -> list[BaseModel]:
        """The options of the metrics that evaluations take of generated answers; none without predict_with_generate."""
        if not self.predict_with_generate:
            return []
        return list(self.metrics) or [metric_options(name) for name in ("rouge", "bleu4")]

    def eval_interval(self) -> float:
        """Steps between evaluations, or a share of all steps below 1."""
        return self.eval_steps if self.eval_steps is not None else self.logging_steps

    def checkpoints_at_once(self, steps: int, epochs: int) -> int:
        """The most checkpoints that a run has on the disk at one time: an old one goes when the next is whole, and the best
        stays besides, also where final/ takes the last.

        Args:
            steps: of the run; 0 where nobody knows. epochs: those it begins; 0 where nobody knows, as of a stream.
        """
        if self.save_strategy == "no":
            return 0
        best_besides = self.eval_strategy != "no"
        limit = math.inf if self.save_total_limit is None else self.save_total_limit + 1 + best_besides
        saves = 0
        if self.save_strategy == "epoch":
            saves = min(epochs, steps or epochs)
        elif steps:
            # a best one is saved at any evaluation, and the last step saves whatever its number
            every = self.eval_interval() if self.load_best_model_at_end else self.save_steps
            saves = math.ceil(steps / (every if every >= 1 else math.ceil(steps * every)))
        if saves:
            return int(min(limit, saves))
        return 1 if self.save_total_limit is None else int(min(limit, steps or limit))

    def _saves_on_evaluations(self) -> bool:
        every, kept = self.eval_interval(), self.save_steps
        if (every < 1) != (kept < 1):
            return False
        ratio = kept / every
        return abs(ratio - round(ratio)) < 1e-9 and round(ratio) >= 1
