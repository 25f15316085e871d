"""Prompt tuning: learnt embeddings before every row (Lester et al. 2021, https://arxiv.org/abs/2104.08691), by peft."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.method import Apply
from luthier.model.methods._prompt_learning import PromptMethod

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel

PEFT_NAMES = {"random": "RANDOM", "vocabulary": "SAMPLE_VOCAB", "text": "RANDOM"}


class Options(MethodOptions):
    """Prompt tuning's settings, as in peft's PromptTuningConfig."""

    name: str = "prompt_tuning"
    num_virtual_tokens: int = Field(20, ge=1, description="Learnt embeddings before every row.")
    init: Literal["random", "vocabulary", "text"] = Field(
        "vocabulary",
        description="Where they start: normally distributed numbers, embeddings of random tokens, or those of `text`.",
    )
    text: str | None = Field(
        None, description="With init: text, what the embeddings start as; repeated or cut to num_virtual_tokens."
    )

    recommended_learning_rate: ClassVar[float] = 3e-2  # the paper takes 0.3 with Adafactor; this is for Adam
    in_adapter: ClassVar[Mapping[str, str]] = {"num_virtual_tokens": "num_virtual_tokens"}

    @model_validator(mode="after")
    def _text_belongs_to_its_init(self) -> Options:
        if self.init == "text" and not (self.text or "").strip():
            raise ValueError("init is text, but text is empty: give the words to start from")
        if self.init != "text" and self.text is not None:
            raise ValueError(f"text is set but init is {self.init}, so it would not be read: set init to text")
        return self


class PromptTuning(PromptMethod):
    """Trains embeddings; saved in peft's format."""

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's PromptTuningConfig. A text is read with the run's own tokenizer, so peft is not told of it."""
        from peft import PromptTuningConfig

        return PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.options.num_virtual_tokens,
            prompt_tuning_init=PEFT_NAMES[self.options.init],
        )

    def apply(self, model: PreTrainedModel, how: Apply) -> nn.Module:
        """Put the embeddings before every row.

        Raises:
            ModelError: as `PeftMethod.apply`, or a text without tokens.
        """
        import torch

        tuned: Any = super().apply(model, how)
        if self.options.init == "text":
            ids = self._text_ids(how)
            with torch.no_grad():
                rows = tuned.word_embeddings(torch.tensor(ids, device=model.device))
                tuned.prompt_encoder["default"].embedding.weight.copy_(rows)
        wrapped: nn.Module = tuned
        return wrapped

    def _text_ids(self, how: Apply) -> list[int]:
        if how.tokenizer is None:
            raise ModelError("method.init is text, but there is no tokenizer to read it with.", "Use init: vocabulary.")
        ids = how.tokenizer(self.options.text, add_special_tokens=False).input_ids
        if not ids:
            raise ModelError(f"method.text {self.options.text!r} has no tokens.", "Give some words.")
        count = self.options.num_virtual_tokens
        repeated: list[int] = (ids * -(-count // len(ids)))[:count]
        return repeated


def build(options: Options) -> PromptTuning:
    """The method for these options."""
    return PromptTuning(options)
