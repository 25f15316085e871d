"""What a config may say. Frozen pydantic classes; every field's description is its help text.

Names are those of transformers' `TrainingArguments`, peft's configs and the papers, wherever those have one.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny

from luthier.config.adapters_section import AdapterEntry, CombineConfig, to_entries
from luthier.config.data_section import DataConfig
from luthier.config.sections import MethodOptions, PluginOptions, Section, expand_user
from luthier.config.training_section import TrainingConfig


def _name_to_mapping(value: Any) -> Any:
    return {"name": value} if isinstance(value, str) else value


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
    adapters: Annotated[
        list[AdapterEntry],
        BeforeValidator(to_entries, json_schema_input_type=str | AdapterEntry | list[str | AdapterEntry]),
    ] = Field(
        default_factory=list,
        description="Adapters that are put on the model, in this order. They are merged before a new one is trained on top.",
    )
    combine: Annotated[CombineConfig, BeforeValidator(_name_to_mapping, json_schema_input_type=str | CombineConfig)] = (
        Field(default_factory=CombineConfig, description="How several adapters become one.")
    )
    continue_adapter: bool = Field(
        False,
        description="Train the model's adapter further (the last of several) instead of merging it and making a new one.",
    )
    router_aux_loss_coef: float | None = Field(
        None,
        ge=0,
        description="Weight of a mixture of experts' load-balancing loss, added to each batch's; 0: none. Unset: as the "
        "model's own config says (output_router_logits, router_aux_loss_coef).",
    )
    attention: Literal["auto", "segmented", "padded"] = Field(
        "auto",
        description="Route of the forward pass. auto: segmented (no padding) if this kind of model passes the probe, else padded.",
    )
    fused: bool = Field(
        True,
        description="Compute LoRA layers, norms and gated feed-forward blocks in fewer passes wherever that gives the same, "
        "on the segmented route; false: module by module.",
    )


class RunConfig(Section):
    """A whole run."""

    model: Annotated[ModelConfig, BeforeValidator(_name_to_mapping, json_schema_input_type=str | ModelConfig)] = Field(
        description="The model to start from."
    )
    data: DataConfig = Field(description="The rows to learn from.")
    stage: SerializeAsAny[PluginOptions] = Field(description="What is learnt: sft (default) or pretrain.")
    method: SerializeAsAny[MethodOptions] = Field(
        description="Which weights learn, and how (default lora); docs/methods.md compares them."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The loop's settings.")
    output_dir: Annotated[str, AfterValidator(expand_user)] = Field("runs/run", description="The run's folder.")

    def training_problems(self) -> list[str]:
        """Where the sections don't fit each other; the verbs that only look at data do without."""
        found = []
        if self.training.eval_strategy != "no" and self.data.validation is None:
            found.append(
                f"training.eval_strategy is {self.training.eval_strategy} but data.validation is unset: "
                "give data.validation a share (0.1), a count or a file"
            )
        if self.data.validation is not None and self.training.eval_strategy == "no":
            found.append(
                "data.validation is set but training.eval_strategy is no, so it would never be read: "
                "set training.eval_strategy to epoch or steps"
            )
        if self.data.streaming and self.training.max_steps <= 0:
            found.append("data.streaming is true, so nobody knows where an epoch ends: set training.max_steps")
        if self.data.streaming and self.training.dataloader_num_workers:
            found.append(
                "training.dataloader_num_workers has no effect with data.streaming, which reads in the training process: "
                "remove it"
            )
        if self.data.streaming and self.training.grouping == "within_buffer":
            found.append(
                "training.grouping is within_buffer, which sorts examples by what they begin with, but with data.streaming "
                "they come in the stream's own order: set it to within_step"
            )
        return found

    def learning_rate(self) -> float:
        """The peak learning rate: the one set, or the method's recommendation as the optimizer wants it."""
        recommended = self.method.recommended_learning_rate * self.training.optim.learning_rate_ratio
        return self.training.learning_rate or recommended

    def data_seed(self) -> int:
        """Seed of data order and splits."""
        return self.training.seed if self.training.data_seed is None else self.training.data_seed
