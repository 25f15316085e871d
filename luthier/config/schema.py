"""What a config may say. Frozen pydantic classes; every field's description is its help text.

Names are those of transformers' `TrainingArguments`, peft's configs and the papers, wherever those have one.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, SerializeAsAny, ValidationInfo, field_validator

from luthier.config.data_section import DataConfig
from luthier.config.generation_section import GenerationSettings
from luthier.config.model_section import ModelConfig
from luthier.config.sections import MethodOptions, PluginOptions, Section, expand_user, name_to_mapping
from luthier.config.training_section import TrainingConfig

__all__ = ["ModelConfig", "RunConfig"]


def _named(value: Any) -> Any:
    """A folder's name that says something: `output_dir=$OUT` of a variable that is not set would train elsewhere."""
    if value is None or (isinstance(value, str) and not value.strip()):
        raise ValueError("is empty; name the run's folder, or leave the key out (runs/run)")
    return value


class RunConfig(Section):
    """A whole run."""

    model: Annotated[ModelConfig, BeforeValidator(name_to_mapping, json_schema_input_type=str | ModelConfig)] = Field(
        description="The model to start from."
    )
    data: DataConfig = Field(description="The rows to learn from.")
    stage: SerializeAsAny[PluginOptions] = Field(
        description="What is learnt: sft (default), pretrain, dpo, classification or regression."
    )
    method: SerializeAsAny[MethodOptions] = Field(
        description="Which weights learn, and how (default lora); docs/methods.md compares them."
    )
    training: TrainingConfig = Field(default_factory=TrainingConfig, description="The loop's settings.")
    generation: GenerationSettings = Field(
        default_factory=GenerationSettings,
        description="With training.predict_with_generate: how evaluations generate answers.",
    )
    output_dir: Annotated[str, BeforeValidator(_named), AfterValidator(expand_user)] = Field(
        "runs/run", description="The run's folder."
    )

    @field_validator("training", mode="before")
    @classmethod
    def _saved_within_an_epoch(cls, value: Any, info: ValidationInfo) -> Any:
        """A stream may be one epoch long: unless asked for something else, it is saved every so many steps, not at its end.
        The best of evaluations at epochs' ends is saved with them."""
        data = info.data.get("data")  # missing where something is wrong with it
        if not isinstance(value, dict) or "save_strategy" in value or data is None or not data.streaming:
            return value
        best_of_epochs = value.get("load_best_model_at_end") and value.get("eval_strategy") == "epoch"
        return value if best_of_epochs else {**value, "save_strategy": "steps"}

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
        found += self._generation_problems()
        if self.model.from_scratch and self.method.name != "full":
            found.append(
                f"model.from_scratch makes random weights, all of which must learn, but method is {self.method.name}: set "
                "method to full"
            )
        if problem := self.method.optimizer_problem(self.training.optim):
            found.append(f"{problem}: use optim adamw, or method lora")
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

    def _generation_problems(self) -> list[str]:
        """Where evaluation by generation does not fit the rest."""
        if not self.training.predict_with_generate:
            idle = self.generation != GenerationSettings()
            return ["generation has no effect: it needs training.predict_with_generate true"] if idle else []
        found = []
        if self.data.validation is None and self.data.test is None:
            found.append(
                "training.predict_with_generate is true, but there are no rows to generate answers to: give data.validation or "
                "data.test"
            )
        if self.stage.name != "sft":
            found.append(
                f"training.predict_with_generate is for stage sft, whose rows have answers; stage is {self.stage.name}"
            )
        elif getattr(self.stage, "train_on", "") == "all":
            found.append(
                "training.predict_with_generate needs to know where an answer begins, but stage.train_on is all: set it to "
                "assistant or last"
            )
        if self.training.engine not in ("auto", "single", "ddp"):
            found.append(
                f"training.predict_with_generate needs the whole model on the first rank, but training.engine is "
                f"{self.training.engine}: use `luthier evaluate` on the finished run"
            )
        if self.generation.num_return_sequences > 1:
            found.append(
                "generation.num_return_sequences is above 1, but one answer of each row is measured: set it to 1"
            )
        return found

    def learning_rate(self) -> float:
        """The peak learning rate: the one set, or the method's recommendation as the optimizer wants it."""
        recommended = self.method.recommended_learning_rate * self.training.optim.learning_rate_ratio
        return self.training.learning_rate or float(f"{recommended:.6g}")  # 0.2 x 2e-5 is 4.000000000000001e-06

    def learning_rate_origin(self) -> str:
        """Where the learning rate comes from, in words."""
        if self.training.learning_rate is not None:
            return "training.learning_rate"
        return f"default of method {self.method.name} with optim {self.training.optim.name}"

    def data_seed(self) -> int:
        """Seed of data order and splits."""
        return self.training.seed if self.training.data_seed is None else self.training.data_seed
