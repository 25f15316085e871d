"""Prefix tuning: learnt keys and values before every row, in every layer (Li and Liang 2021,
https://arxiv.org/abs/2101.00190), by peft. Without the MLP it is P-tuning v2 (Liu et al. 2022,
https://arxiv.org/abs/2110.07602)."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError
from luthier.model.heads import head_modules
from luthier.model.method import Apply
from luthier.model.methods._prompt_learning import PromptMethod, prompt_encoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SMALL = 0.1  # of peft's random start


class Options(MethodOptions):
    """Prefix tuning's settings, as in peft's PrefixTuningConfig."""

    name: str = "prefix_tuning"
    num_virtual_tokens: int = Field(20, ge=1, description="Learnt positions before every row.")
    projection: bool = Field(
        False,
        description="Make keys and values by an MLP that learns with them (prefix tuning's own way, steadier at small "
        "sizes); false: train them directly (P-tuning v2). peft: prefix_projection.",
    )
    encoder_hidden_size: int | None = Field(None, ge=1, description="Width of the MLP; unset: the model's hidden size.")
    init: Literal["small", "random", "zero"] = Field(
        "small",
        description="Where keys and values start. random is peft's own, normal numbers of unit size, which undo a trained "
        "model at first; small: a tenth of these. zero: without the MLP all positions then stay the same, as if they were one.",
    )

    in_adapter: ClassVar[Mapping[str, str]] = {
        "num_virtual_tokens": "num_virtual_tokens",
        "projection": "prefix_projection",
    }

    @property
    def recommended_learning_rate(self) -> float:  # type: ignore[override]
        # P-tuning v2's range is 5e-3 to 2e-2; at that rate the MLP's first steps throw a trained model off (docs/lab_log.md)
        return 1e-3 if self.projection else 1e-2

    @classmethod
    def of_adapter(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """The width belongs to the MLP, where there is one."""
        found = super().of_adapter(settings)
        return found | ({"encoder_hidden_size": settings.get("encoder_hidden_size")} if found.get("projection") else {})

    @model_validator(mode="after")
    def _width_belongs_to_the_mlp(self) -> Options:
        if self.encoder_hidden_size is not None and not self.projection:
            raise ValueError("encoder_hidden_size is the width of the MLP, and projection is false: set it to true")
        return self


class PrefixTuning(PromptMethod):
    """Trains keys and values; saved in peft's format, without the MLP."""

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's PrefixTuningConfig for these options. Raises ModelError for a model that takes no keys and values."""
        from peft import PrefixTuningConfig

        refuse_without_prefix(model, how)
        own = self.options
        return PrefixTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=own.num_virtual_tokens,
            prefix_projection=own.projection,
            encoder_hidden_size=own.encoder_hidden_size or model.config.get_text_config().hidden_size,
            init_weights="zero" if own.init == "zero" else None,
        )

    def start(self, model: Any) -> None:
        """Scale what peft drew, or the last layer of its MLP."""
        if self.options.init != "small":
            return
        encoder = prompt_encoder(model)
        last = encoder.transform[-1] if self.options.projection else encoder.embedding
        for weight in last.parameters():
            weight.data.mul_(SMALL)


def refuse_without_prefix(model: PreTrainedModel, how: Apply) -> None:
    """Raise ModelError for a model with a head into which peft can't put keys and values: one that takes none, or whose
    head peft would compute in part (it hands a pooled state to one module)."""
    if how.head is None:
        return
    backbone: Any = getattr(model, model.base_model_prefix, model)
    of_model, of_backbone = (
        "past_key_values" in inspect.signature(part.forward).parameters for part in (model, backbone)
    )
    beside = [name for name in head_modules(model) if not name.startswith(f"{model.base_model_prefix}.")]
    if not (of_model or (of_backbone and len(beside) == 1)):
        raise ModelError(
            f"{type(model).__name__} takes no keys and values before a row, so a prefix has no place in it.",
            "Use method: prompt_tuning or lora.",
        )


def build(options: Options) -> PrefixTuning:
    """The method for these options."""
    return PrefixTuning(options)
