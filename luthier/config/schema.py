"""What a config may say. Frozen pydantic classes; every field's description is its help text.

Names are those of transformers' `TrainingArguments`, peft's configs and the papers, wherever those have one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializeAsAny,
    Tag,
    ValidationInfo,
    field_validator,
    model_validator,
)

from luthier.config.split_slices import checked_split, split_kind, split_number


class Section(BaseModel):
    """A part of the config: unknown keys are errors, values can't be changed after loading."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, protected_namespaces=(), allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        # pydantic reads true as 1, so `learning_rate: true` would train
        if isinstance(value, bool) and info.field_name is not None:
            kinds = set(plain_types(cls.model_fields[info.field_name].annotation))
            if kinds & {int, float} and bool not in kinds:
                raise ValueError(f"must be a number, found {str(value).lower()}")
        return value


def plain_types(annotation: Any) -> Iterator[Any]:
    """The types an annotation mentions, looking through Annotated, Optional, unions and containers."""
    arguments = getattr(annotation, "__args__", ())
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from plain_types(argument)


class PluginOptions(Section):
    """Base of every plug-in's `Options`; `name` says which plug-in it is."""

    name: str


class MethodOptions(PluginOptions):
    """Base of every method's `Options`."""

    recommended_learning_rate: ClassVar[float] = 5e-5


class OptimizerOptions(PluginOptions):
    """Base of every optimizer's `Options`."""


def _whole_or_share(value: float) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"must be a whole number of steps, or a share of all steps below 1; found {value:g}")
    return value


def _expand_user(value: str) -> str:
    return os.path.expanduser(value)


def _name_to_mapping(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


def _path_to_mapping(value: Any) -> Any:
    return {"path": value} if isinstance(value, str) else value


def _one_to_list(value: Any) -> Any:
    return [value] if isinstance(value, (str, dict)) else value


class ModelConfig(Section):
    """Which model, from where, in which precision. Short form: its name."""

    name: str = Field(
        description="An alias (`luthier models list`), a folder, a run, a checkpoint, a hub id, or `hub:id` with one of "
        "the prefixes local:, huggingface:, modelscope:, pypi:."
    )
    revision: str | None = Field(None, description="Branch, tag or commit on the hub.")
    cache_dir: str | None = Field(None, description="Where the hub client keeps downloads; default: its own.")
    token: str | None = Field(
        None,
        description="Access token of the hub; default: HF_TOKEN or the hub's login. Never written to a run.",
        repr=False,
    )
    endpoint: str | None = Field(
        None, description="Address of the hub or a mirror (https://...); default: HF_ENDPOINT."
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="Precision of frozen weights. auto: the model's own where the device does it fast, else float32. "
        "Trainable weights are float32 unless training.pure_bf16.",
    )
    attention: Literal["auto", "segmented", "padded"] = Field(
        "auto",
        description="Route of the forward pass. auto: segmented (no padding) if this kind of model passes the probe, else padded.",
    )


class DataEntry(Section):
    """One source of rows. Short form: its path."""

    path: Annotated[str, AfterValidator(_expand_user)] = Field(
        description="A JSON, JSONL, CSV, TSV, Parquet, Arrow or text file (text types also .gz or .zst), a folder of files "
        "of one type, a pattern such as data/*.jsonl, a folder that datasets' save_to_disk wrote, or a data set of the "
        "Hugging Face Hub (owner/name, huggingface:name), or one of LLaMA-Factory's registry (dataset_info.json#name)."
    )
    format: str = Field(
        "auto", description="alpaca, sharegpt, openai, text, a dotted path; auto: found out from the columns."
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Where a row's parts stand, by the format's own names: {instruction: question, output: answer}.",
    )
    tags: dict[str, str] = Field(
        default_factory=dict,
        description="What a turn's keys and roles are called: {role_tag: role, content_tag: text, user_tag: me, ...}.",
    )
    split: Annotated[str, AfterValidator(checked_split)] | None = Field(
        None,
        description="A split, a slice of it or both: train, train[:70%], train[10:200], [70%:]. Default: train, all of it.",
    )
    subset: str | None = Field(None, description="Configuration of a hub's data set.")
    folder: str | None = Field(None, description="Folder inside a hub's data set.")
    system: str | Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="System prompt for rows that bring none; of a list, each row gets one by the seed."
    )
    max_samples: Annotated[int, Field(gt=0)] | None = Field(
        None, description="A seeded random sample of this many rows."
    )
    weight: Annotated[float, Field(gt=0)] | None = Field(
        None, description="With data.mix: how often rows of this entry are drawn, in proportion to the others' (1)."
    )
    head: bool = Field(False, description="Take the first max_samples rows instead (many sets are sorted).")

    @model_validator(mode="after")
    def _head_of_something(self) -> DataEntry:
        if self.head and self.max_samples is None:
            raise ValueError("head has no effect without max_samples: say how many rows")
        return self


Entry = Annotated[DataEntry, BeforeValidator(_path_to_mapping, json_schema_input_type=str | DataEntry)]
Entries = Annotated[
    list[Entry],
    BeforeValidator(_one_to_list, json_schema_input_type=str | DataEntry | list[Entry]),
    Field(min_length=1),
]


Split = Annotated[
    Annotated[float | int, BeforeValidator(split_number), Tag("<number>")] | Annotated[Entries, Tag("<entries>")],
    Discriminator(split_kind),
]


class DataConfig(Section):
    """Rows, and how they become tokens."""

    train: Entries = Field(description="Training rows: a path, a mapping, or a list of them.")
    validation: Split | None = Field(
        None, description="A share (0.1) or a count (100) of the training rows, or a list like train."
    )
    test: Split | None = Field(None, description="Like validation; scored once, after training, into run.json.")
    template: str = Field(
        "auto", description="Chat template: auto (the tokenizer's own) or a name in luthier/data/templates."
    )
    cutoff_length: int = Field(1024, ge=2, description="Longest example, in tokens.")
    over_length: Literal["truncate", "drop", "error"] = Field(
        "truncate", description="What happens to longer examples; every one is counted."
    )
    invalid_rows: Literal["error", "reject"] = Field(
        "error", description="Rows that can't be used: stop at once, or count them and write them to rejected.jsonl."
    )
    shuffle: bool = Field(
        True, description="Shuffle the training rows anew every epoch (a function of seed and epoch)."
    )
    mix: Literal["concat", "interleave_under", "interleave_over"] = Field(
        "concat",
        description="Entries of train: all rows of each; or mixed by weight (by turns without any) until the first entry "
        "ends (under), or until all have ended, shorter ones repeated (over).",
    )

    @model_validator(mode="after")
    def _mix_acts(self) -> DataConfig:
        held = [item for part in (self.validation, self.test) if isinstance(part, list) for item in part]
        if any(item.weight is not None for item in held):
            raise ValueError("weight has no effect in validation and test, whose rows are all used once: remove it")
        if self.mix == "concat" and any(item.weight is not None for item in self.train):
            raise ValueError("weight has no effect with mix: concat; set mix to interleave_under or interleave_over")
        if self.mix != "concat" and len(self.train) < 2:
            raise ValueError(f"mix: {self.mix} needs at least two entries in train, found one")
        return self


def _no_is_a_word(value: Any) -> Any:
    """YAML reads a bare `no` as false."""
    return "no" if value is False else value


Strategy = Annotated[Literal["no", "steps", "epoch"], BeforeValidator(_no_is_a_word)]


StepCount = Annotated[float, Field(gt=0), AfterValidator(_whole_or_share)]


class TrainingConfig(Section):
    """The loop. Names and meanings are those of transformers' TrainingArguments."""

    num_train_epochs: float = Field(3.0, gt=0, description="Passes over the data; may be fractional.")
    max_steps: int = Field(-1, ge=-1, description="Optimizer steps; overrides num_train_epochs. -1: off.")
    per_device_train_batch_size: int = Field(4, ge=1, description="Examples per batch and device.")
    per_device_eval_batch_size: int = Field(8, ge=1, description="Examples per evaluation batch and device.")
    gradient_accumulation_steps: int = Field(1, ge=1, description="Batches per optimizer step.")
    learning_rate: float | None = Field(
        None, gt=0, description="Peak learning rate; unset: the method's recommendation."
    )
    lr_scheduler_type: Literal[
        "linear", "cosine", "cosine_with_restarts", "constant", "constant_with_warmup", "polynomial"
    ] = Field("linear", description="Shape of the learning rate after the warm-up.")
    lr_scheduler_kwargs: dict[str, float] = Field(
        default_factory=dict, description="Further settings of the schedule: num_cycles, power, lr_end."
    )
    warmup_steps: Annotated[float, AfterValidator(_whole_or_share)] = Field(
        0, ge=0, description="Steps of linear warm-up; below 1: a share of all steps."
    )
    optim: str = Field("adamw", description="Optimizer: a name in luthier/training/optimizers, or a dotted path.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay; none on norms and biases.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Decay of AdamW's first moment.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Decay of AdamW's second moment.")
    adam_epsilon: float = Field(1e-8, gt=0, description="AdamW's epsilon.")
    max_grad_norm: float = Field(1.0, ge=0, description="Gradients are scaled down to this norm; 0: no clipping.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in backward: less memory, more time."
    )
    bf16: bool = Field(False, description="Autocast to bfloat16.")
    fp16: bool = Field(False, description="Autocast to float16, with loss scaling.")
    pure_bf16: bool = Field(False, description="Keep trainable weights in bfloat16 too.")
    tf32: bool | None = Field(None, description="TensorFloat-32 matrix products on CUDA; unset: torch's default.")
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
    save_strategy: Strategy = Field("epoch", description="When to write a checkpoint.")
    save_steps: StepCount = Field(500, description="Steps between checkpoints; below 1: a share of all steps.")
    save_total_limit: int | None = Field(2, ge=1, description="Checkpoints to keep, the best one besides; null: all.")
    load_best_model_at_end: bool = Field(
        False, description="final/ gets the checkpoint with the best metric_for_best_model."
    )
    metric_for_best_model: str = Field("loss", description="A key of the evaluation's line, with or without eval_.")
    greater_is_better: bool | None = Field(
        None, description="Direction of that metric; unset: false for losses, else true."
    )
    early_stopping_patience: int | None = Field(
        None, ge=1, description="Stop after this many evaluations without improvement."
    )
    early_stopping_threshold: float = Field(0.0, ge=0, description="What counts as an improvement.")
    logging_steps: StepCount = Field(
        10, description="Steps between lines of metrics.jsonl; below 1: a share of all steps."
    )
    logging_first_step: bool = Field(False, description="Write a line for the first step too.")
    report_to: Annotated[list[str], BeforeValidator(_one_to_list, json_schema_input_type=str | list[str])] = Field(
        default_factory=list,
        description="tensorboard, wandb, swanlab, mlflow: through the callbacks that transformers or the service itself ships.",
    )
    run_name: str | None = Field(
        None, description="Name of the run at those services; unset: the output folder's name."
    )
    callbacks: list[str] = Field(default_factory=list, description="Dotted paths of your own TrainerCallback classes.")

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
        problems += self._settings_without_effect()
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _settings_without_effect(self) -> list[str]:
        """Settings that were changed from their default and that other settings keep from acting."""
        rules = {
            "eval_steps": (self.eval_strategy == "steps", "eval_strategy steps"),
            "save_steps": (self.save_strategy == "steps", "save_strategy steps"),
            "early_stopping_patience": (self.eval_strategy != "no", "eval_strategy steps or epoch"),
            "early_stopping_threshold": (self.early_stopping_patience is not None, "early_stopping_patience"),
            "metric_for_best_model": (self.eval_strategy != "no", "eval_strategy steps or epoch"),
            "greater_is_better": (self.eval_strategy != "no", "eval_strategy steps or epoch"),
            "warmup_steps": (
                self.lr_scheduler_type != "constant",
                "another lr_scheduler_type, such as constant_with_warmup",
            ),
        }
        found = []
        for name, (acts, needed) in rules.items():
            value = getattr(self, name)
            if not acts and value != type(self).model_fields[name].default:
                found.append(f"{name}={value} has no effect: it needs {needed}")
        return found

    def eval_interval(self) -> float:
        """Steps between evaluations, or a share of all steps below 1."""
        return self.eval_steps if self.eval_steps is not None else self.logging_steps

    def _saves_on_evaluations(self) -> bool:
        every, kept = self.eval_interval(), self.save_steps
        if (every < 1) != (kept < 1):
            return False
        ratio = kept / every
        return abs(ratio - round(ratio)) < 1e-9 and round(ratio) >= 1


class RunConfig(Section):
    """A whole run."""

    model: Annotated[ModelConfig, BeforeValidator(_name_to_mapping, json_schema_input_type=str | ModelConfig)] = Field(
        description="The model to start from."
    )
    data: DataConfig = Field(description="The rows to learn from.")
    stage: SerializeAsAny[PluginOptions] = Field(description="What is learnt: sft (default) or pretrain.")
    method: SerializeAsAny[MethodOptions] = Field(
        description="Which weights learn, and how: lora (default), full, freeze."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The loop's settings.")
    output_dir: Annotated[str, AfterValidator(_expand_user)] = Field("runs/run", description="The run's folder.")

    @model_validator(mode="after")
    def _agree(self) -> RunConfig:
        if self.training.eval_strategy != "no" and self.data.validation is None:
            raise ValueError(
                f"training.eval_strategy is {self.training.eval_strategy} but data.validation is unset: "
                "give data.validation a share (0.1), a count or a file"
            )
        if self.data.validation is not None and self.training.eval_strategy == "no":
            raise ValueError(
                "data.validation is set but training.eval_strategy is no, so it would never be read: "
                "set training.eval_strategy to epoch or steps"
            )
        return self

    def learning_rate(self) -> float:
        """The peak learning rate: the one set, or the method's recommendation."""
        return self.training.learning_rate or self.method.recommended_learning_rate

    def data_seed(self) -> int:
        """Seed of data order and splits."""
        return self.training.seed if self.training.data_seed is None else self.training.data_seed
