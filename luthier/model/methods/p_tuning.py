"""P-tuning: embeddings before every row, made by a small network that learns with them (Liu et al. 2021,
https://arxiv.org/abs/2103.10385), by peft. The network is left out of what is saved: its last output is kept."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from luthier.config.sections import MethodOptions
from luthier.model.method import Apply
from luthier.model.methods._prompt_learning import PromptMethod

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Options(MethodOptions):
    """P-tuning's settings, as in peft's PromptEncoderConfig."""

    name: str = "p_tuning"
    num_virtual_tokens: int = Field(20, ge=1, description="Learnt embeddings before every row.")
    encoder: Literal["mlp", "lstm"] = Field(
        "mlp", description="The network that makes them: three linear layers, or a bidirectional LSTM with two."
    )
    encoder_hidden_size: int | None = Field(
        None, ge=1, description="Its width (peft: encoder_hidden_size); unset: the model's hidden size."
    )
    encoder_num_layers: int = Field(2, ge=1, description="Layers of the LSTM.")
    encoder_dropout: float = Field(0.0, ge=0, lt=1, description="Dropout between the layers of the LSTM.")

    recommended_learning_rate: ClassVar[float] = 3e-3
    in_adapter: ClassVar[Mapping[str, str]] = {
        name: name for name in ("num_virtual_tokens", "encoder_hidden_size", "encoder_num_layers", "encoder_dropout")
    }

    @classmethod
    def of_adapter(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """peft writes the kind of encoder in capitals."""
        return super().of_adapter(settings) | {
            "encoder": str(settings.get("encoder_reparameterization_type", "MLP")).lower()
        }

    @model_validator(mode="after")
    def _layers_belong_to_the_lstm(self) -> Options:
        if self.encoder == "mlp" and (self.encoder_num_layers != 2 or self.encoder_dropout):
            raise ValueError("encoder_num_layers and encoder_dropout act on the LSTM only: set encoder to lstm")
        if self.encoder_dropout and self.encoder_num_layers == 1:
            raise ValueError("encoder_dropout acts between layers, and encoder_num_layers is 1")
        return self


class PTuning(PromptMethod):
    """Trains embeddings through an encoder; saved in peft's format, without the encoder."""

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's PromptEncoderConfig for these options."""
        from peft import PromptEncoderConfig

        own = self.options
        return PromptEncoderConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=own.num_virtual_tokens,
            encoder_reparameterization_type=own.encoder.upper(),
            encoder_hidden_size=own.encoder_hidden_size or model.config.get_text_config().hidden_size,
            encoder_num_layers=own.encoder_num_layers,
            encoder_dropout=own.encoder_dropout,
        )


def build(options: Options) -> PTuning:
    """The method for these options."""
    return PTuning(options)
