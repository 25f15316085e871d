"""The config's part about the model: which one, from where, in which precision, and what is changed about it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from luthier.config.adapters_section import AdapterEntry, CombineConfig, to_entries
from luthier.config.sections import Section, expand_user, name_to_mapping

QUANTIZED_TYPES = {"nf4": 4, "fp4": 4, "int8": 8}
# the settings that act with one width only, with what they are where a config leaves them out
OF_FOUR_BITS = {"type": "nf4", "double": True, "compute_dtype": "auto"}
OF_EIGHT_BITS = {"type": "int8", "int8_threshold": 6.0, "double": None, "compute_dtype": None}


def expand_user_if_any(value: str | None) -> str | None:
    """`~` is the home folder."""
    return value if value is None else expand_user(value)


def _short_quantization(value: Any) -> Any:
    """`nf4` and `4` are short for a mapping."""
    if isinstance(value, str) and value in QUANTIZED_TYPES:
        return {"bits": QUANTIZED_TYPES[value], "type": value}
    return {"bits": value} if isinstance(value, int) and not isinstance(value, bool) else value


class QuantizationConfig(Section):
    """Linear layers of a frozen base in 4 or 8 bits (bitsandbytes); head, embeddings and norms stay as they are.

    4 bits: QLoRA (Dettmers et al. 2023, https://arxiv.org/abs/2305.14314). 8 bits: LLM.int8() (Dettmers et al. 2022,
    https://arxiv.org/abs/2208.07339). What acts with the other width only is null.
    """

    bits: Literal[4, 8] | None = Field(None, description="Bits a weight: 4 (default; 8 with type int8) or 8.")
    type: Literal["nf4", "fp4", "int8"] = Field(
        "nf4", description="Values that the bits stand for: nf4 or fp4 with 4 bits, int8 with 8."
    )
    double: bool | None = Field(
        True, description="Quantize the scales too, with 4 bits: 0.516 bytes a weight instead of 0.563."
    )
    compute_dtype: Literal["auto", "float32", "bfloat16", "float16"] | None = Field(
        "auto",
        description="Precision of the products of 4-bit layers. auto: bfloat16 or float16 with training.bf16 or "
        "fp16, else the precision that the other weights are loaded in.",
    )
    int8_threshold: float | None = Field(
        None,
        ge=0,
        description="With 8 bits: columns with an activation beyond this are computed in float16 (default 6.0); 0: none. "
        "Training on a CPU keeps all activations as they are, so it acts on evaluation and chat there.",
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        kind = value.get("type")
        bits = value.get("bits")
        if bits is None:
            bits = QUANTIZED_TYPES.get(kind, 4) if isinstance(kind, str) else 4
        if bits not in (4, 8):
            return value
        given = {key: setting for key, setting in {**value, "bits": bits}.items() if setting is not None}
        return {**(OF_FOUR_BITS if bits == 4 else OF_EIGHT_BITS), **given}

    @model_validator(mode="after")
    def _nothing_without_effect(self) -> QuantizationConfig:
        if QUANTIZED_TYPES[self.type] != self.bits:
            raise ValueError(f"type {self.type} has {QUANTIZED_TYPES[self.type]} bits, but bits is {self.bits}")
        others = ("int8_threshold",) if self.bits == 4 else ("double", "compute_dtype")
        idle = [key for key in others if getattr(self, key) is not None]
        if idle:
            raise ValueError(f"{' and '.join(idle)} would have no effect with {self.bits} bits: leave it out")
        return self

    def __str__(self) -> str:
        return f"{self.type} (double)" if self.double else self.type


class RopeScalingConfig(Section):
    """Rotary positions stretched beyond those that a model knows.

    linear: all frequencies divided by the factor (Chen et al. 2023, https://arxiv.org/abs/2306.15595). dynamic: the base
    grows with the length once that is beyond what is known (NTK-aware). yarn: high frequencies stay, low ones are divided
    (Peng et al. 2023, https://arxiv.org/abs/2309.00071).
    """

    type: Literal["linear", "dynamic", "yarn"] = Field(description="How the frequencies are changed.")
    factor: float | None = Field(
        None,
        gt=1,
        description="How many times as many positions; unset: as many as data.cutoff_length needs, a whole number.",
    )
    original_max_position_embeddings: int | None = Field(
        None,
        ge=1,
        description="yarn: positions that the model was pretrained with; unset: its max_position_embeddings.",
    )
    attention_factor: float | None = Field(
        None, gt=0, description="yarn: scale of the attention's logits; unset: 0.1 ln(factor) + 1."
    )
    beta_fast: float | None = Field(
        None, gt=0, description="yarn: frequencies that turn more often than this stay as they are; unset: 32."
    )
    beta_slow: float | None = Field(
        None, gt=0, description="yarn: frequencies that turn less often than this are divided; unset: 1."
    )

    @model_validator(mode="after")
    def _of_its_type(self) -> RopeScalingConfig:
        of_yarn = ("original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow")
        idle = [key for key in of_yarn if getattr(self, key) is not None]
        if idle and self.type != "yarn":
            raise ValueError(f"{' and '.join(idle)} would have no effect with type {self.type}: leave it out")
        if (self.beta_fast or 32) < (self.beta_slow or 1):
            raise ValueError(f"beta_fast ({self.beta_fast or 32}) must not be below beta_slow ({self.beta_slow or 1})")
        return self


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
    quantization: Annotated[
        QuantizationConfig | None,
        BeforeValidator(_short_quantization, json_schema_input_type=str | int | QuantizationConfig | None),
    ] = Field(
        None,
        description="The frozen base in 4 or 8 bits (docs/quantization.md). Short forms: nf4, fp4, int8, 4, 8; long form: "
        "bits, type, double, compute_dtype, int8_threshold.",
    )
    rope_scaling: RopeScalingConfig | None = Field(
        None, description="Positions beyond those that the model knows: {type: yarn, factor: 4.0} (docs/models.md)."
    )
    config_overrides: dict[str, Any] = Field(
        default_factory=dict,
        description="Settings of the model's own config.json, such as num_hidden_layers: 3 for its first three layers.",
    )
    from_scratch: bool = Field(
        False,
        description="Random weights of the model's kind in place of its own, drawn with training.seed; needs method: full.",
    )
    tokenizer: Annotated[str | None, AfterValidator(expand_user_if_any)] = Field(
        None,
        description="With from_scratch: folder of the tokenizer, whose size the vocabulary takes; unset: the model's.",
    )
    device_map: Literal["auto"] | dict[str, int | str] | None = Field(
        None,
        description="Where modules lie: auto, or devices by the names of modules. Training takes only what puts all of them on "
        "its own device; chat and export have --device-map and --offload-folder.",
    )
    adapters: Annotated[
        list[AdapterEntry],
        BeforeValidator(to_entries, json_schema_input_type=str | AdapterEntry | list[str | AdapterEntry]),
    ] = Field(
        default_factory=list,
        description="Adapters that are put on the model, in this order. They are merged before a new one is trained on top.",
    )
    combine: Annotated[CombineConfig, BeforeValidator(name_to_mapping, json_schema_input_type=str | CombineConfig)] = (
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
        description="Compute LoRA layers, norms, rotations and gated feed-forward blocks in fewer passes where that gives the same, "
        "on the segmented route; false: module by module.",
    )

    @model_validator(mode="after")
    def _scratch_has_no_weights(self) -> ModelConfig:
        if not self.from_scratch and self.tokenizer is not None:
            raise ValueError(
                "tokenizer acts with from_scratch: true only: trained weights know the tokens of their own tokenizer"
            )
        if self.from_scratch:
            set_too = [key for key in ("quantization", "adapters", "continue_adapter") if getattr(self, key)]
            if set_too:
                raise ValueError(
                    f"from_scratch makes new weights, which {' and '.join(set_too)} can't have: leave it out"
                )
        return self
