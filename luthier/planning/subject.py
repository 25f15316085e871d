"""The run that is planned: its model without weights as it will be trained, under the config's settings or others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from luthier.config.model_section import QuantizationConfig
from luthier.config.plugins import METHODS, STAGES
from luthier.config.schema import RunConfig
from luthier.config.sections import OptimizerOptions
from luthier.foundation.errors import UserError
from luthier.model import loading
from luthier.model.base_settings import BaseSettings
from luthier.model.heads import SequenceHead, train_head
from luthier.model.method import Apply, Method, ParameterCount, count_parameters
from luthier.planning.hardware import Device
from luthier.planning.quantized import quantizable, quantize
from luthier.planning.rows import Rows
from luthier.planning.step_trace import fake_weights
from luthier.scoring.scorer import Scorer
from luthier.training.optimization import trained_shapes
from luthier.training.schedule import Schedule
from luthier.training.stage import Stage
from luthier.training.trained import TrainedParameter, check_fit, gradient_bytes, state_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class PreparedRun(Protocol):
    """What `luthier.commands.setup.set_up` gives: a run before its weights."""

    config: RunConfig
    source: Any
    model_config: PreTrainedConfig
    tokenizer: Any
    repaired: Any
    stage: Stage
    data: Any
    schedule: Schedule
    head: SequenceHead | None

    @property
    def base_settings(self) -> BaseSettings:
        """How the base is changed while it loads."""
        ...

    def apply_settings(self, base_name: str | None = None) -> Apply:
        """What the method is told."""
        ...


@dataclass(frozen=True)
class Subject:
    """A run to be planned.

    Args:
        fit: fits a skeleton to the run's tokenizer.
        how: what the method is told. pad_token_id: of the tokenizer.
        rows: the training rows.
        found_quantized: how the base's weights are quantized though the config does not ask for it.
    """

    config: RunConfig
    model_config: PreTrainedConfig
    stage: Stage
    head: SequenceHead | None
    how: Apply
    fit: Callable[[PreTrainedModel], object]
    rows: Rows
    found_quantized: QuantizationConfig | None = None
    pad_token_id: int = 0
    trust_remote_code: bool = False

    @classmethod
    def of(cls, run: PreparedRun, *, trust_remote_code: bool = False) -> Subject:
        """A run that was set up."""
        from luthier.model.tokenizers.repair import fit_model

        return cls(
            run.config,
            run.model_config,
            run.stage,
            run.head,
            run.apply_settings(),
            lambda model: fit_model(model, run.tokenizer, run.repaired),
            Rows.of(run.data.train, run.schedule),
            run.base_settings.quantization or _saved(run.source.saved_quantization),
            run.tokenizer.pad_token_id or 0,
            trust_remote_code,
        )

    @classmethod
    def of_shape(cls, config: RunConfig, model_config: PreTrainedConfig) -> Subject:
        """A run on a model of which the sizes alone are known; its rows are as long as any may be.

        Raises:
            UserError: a stage that must see its rows.
        """
        if config.stage.name not in ("sft", "pretrain"):
            raise UserError(
                f"a run on a model's shape can be planned for the stages sft and pretrain, not for {config.stage.name}.",
                "Fetch the model first.",
            )
        stage: Stage = STAGES.load(config.stage.name).build(config.stage)
        how = Apply(
            seed=config.training.seed,
            base_name=config.model.name,
            pure_bf16=config.training.pure_bf16,
            # not known without rows, and no size depends on it
            total_steps=config.training.max_steps if config.training.max_steps > 0 else 1000,
        )
        return cls(config, model_config, stage, None, how, lambda model: None, Rows())

    def under(self, config: RunConfig) -> Subject:
        """The same run with other settings."""
        return replace(self, config=config)

    @property
    def quantization(self) -> QuantizationConfig | None:
        """How the base's weights are quantized."""
        return self.config.model.quantization or self.found_quantized

    @property
    def method(self) -> Method:
        """The config's method."""
        method: Method = METHODS.load(self.config.method.name).build(self.config.method)
        return method


@dataclass(frozen=True)
class TracedModel:
    """A model of fake weights, ready to be traced.

    Args:
        weight_bytes: of all weights and buffers. trained_bytes: of those that learn. base_bytes: of the others.
        unit_bytes: of the largest part that sharding gathers at once: a layer, or the embedding.
        saved_bytes: what the method writes, roughly.
        trained: what learns, as an optimizer sees it. optim: the optimizer.
    """

    scorer: Scorer
    count: ParameterCount
    weight_bytes: int
    trained_bytes: int
    unit_bytes: int
    saved_bytes: int
    trained: tuple[TrainedParameter, ...]
    optim: OptimizerOptions

    @property
    def optimizer_bytes(self) -> int:
        """Of the optimizer's state."""
        return state_bytes(self.optim, self.trained)

    @property
    def gradient_bytes(self) -> int:
        """Of all gradients that are there at one time."""
        return gradient_bytes(self.optim, self.trained)

    def under(self, optim: OptimizerOptions) -> TracedModel:
        """The same model, trained by another optimizer.

        Raises:
            TrainingError: it does not fit what is trained.
        """
        check_fit(optim, self.trained)
        return replace(self, optim=optim)


def traced_model(subject: Subject, device: Device) -> TracedModel:
    """Build the run's model on fake tensors, in the precisions that training gives it on a device.

    Raises:
        ModelError: the method does not fit the model.
    """
    config, method = subject.config, subject.method
    model = loading.skeleton(subject.model_config, head=subject.head, trust_remote_code=subject.trust_remote_code)
    subject.fit(model)
    base = {id(parameter) for parameter in model.parameters()}
    quantized = quantizable(model, subject.quantization, device.kind) if subject.quantization is not None else []
    tuned = method.apply(model, replace(subject.how, quantized=bool(quantized)))
    if subject.head is not None and not hasattr(tuned, "peft_config"):
        train_head(model, config.training.pure_bf16)
    if config.training.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    count = count_parameters(tuned)
    frozen = base_dtype(config, subject.model_config, method, device)
    trained = torch.bfloat16 if config.training.pure_bf16 else torch.float32

    if subject.quantization is not None:
        quantize(tuned, quantized, subject.quantization, _products(subject.quantization, config, frozen))

    def dtype_of(parameter: nn.Parameter) -> torch.dtype:
        if parameter.requires_grad:
            return trained
        return frozen if id(parameter) in base and parameter.is_floating_point() else parameter.dtype

    fake_weights(tuned, dtype_of)
    scorer = Scorer(
        tuned,
        config.model.attention,
        subject.pad_token_id,
        config.model.router_aux_loss_coef,
        lambda: method.penalty(tuned),
        config.model.fused,
    )
    parameters = {id(p): p for p in tuned.parameters()}.values()
    trained_bytes = sum(p.nbytes for p in parameters if p.requires_grad)
    weights = sum(p.nbytes for p in parameters) + sum({id(b): b.nbytes for b in tuned.buffers()}.values())
    return TracedModel(
        scorer=scorer,
        count=count,
        weight_bytes=weights,
        trained_bytes=trained_bytes,
        unit_bytes=_largest_unit(tuned),
        saved_bytes=weights if method.saves == "model" else trained_bytes,
        trained=tuple(trained_shapes(tuned, pure_bf16=config.training.pure_bf16)),
        optim=config.training.optim,
    )


def base_dtype(config: RunConfig, model_config: PreTrainedConfig, method: Method, device: Device) -> torch.dtype:
    """The precision of frozen weights on a device, as training chooses it."""
    training = config.training
    own = str(getattr(model_config.get_text_config(), "dtype", None) or "float32").removeprefix("torch.")
    if config.model.dtype != "auto":
        chosen: torch.dtype = getattr(torch, config.model.dtype)
    elif own == "float16" and device.kind != "cpu":
        chosen = torch.float16
    else:
        chosen = torch.bfloat16 if own == "bfloat16" and device.has_bfloat16 else torch.float32
    if method.trains_inside and training.pure_bf16:
        return torch.bfloat16
    if method.needs_float32(training.bf16 or training.fp16, device.kind):
        return torch.float32
    return chosen


def autocast_dtype(config: RunConfig) -> torch.dtype | None:
    """The precision of a forward pass, as the engine has it."""
    return torch.bfloat16 if config.training.bf16 else torch.float16 if config.training.fp16 else None


def _products(how: QuantizationConfig, config: RunConfig, frozen: torch.dtype) -> torch.dtype:
    """The precision of quantized layers' products."""
    if how.compute_dtype not in (None, "auto"):
        chosen: torch.dtype = getattr(torch, str(how.compute_dtype))
        return chosen
    return autocast_dtype(config) or frozen


def _saved(saved: Any) -> QuantizationConfig | None:
    """How weights are quantized that were saved so, by whatever format: its bits tell what they take."""
    if saved is None:
        return None
    bits = 8 if saved.get("load_in_8bit") or saved.get("bits") == 8 else 4
    return QuantizationConfig(bits=8, type="int8") if bits == 8 else QuantizationConfig()


def _largest_unit(model: nn.Module) -> int:
    """Bytes of the largest layer or embedding."""
    units: list[nn.Module] = [module for module in model.modules() if isinstance(module, nn.Embedding)]
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) > 1:
            units += list(module)
    return max((sum(parameter.nbytes for parameter in unit.parameters()) for unit in units), default=0)
