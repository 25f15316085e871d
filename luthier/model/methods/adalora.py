"""AdaLoRA: updates of a rank that is cut where it matters least (Zhang et al. 2023, https://arxiv.org/abs/2303.10512), by
peft.

Every update starts with initial_rank triplets (a singular value and its two vectors). After a warm-up the least important
ones are switched off, down to target_rank on average at the final phase; then those that are left are trained on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field, model_validator

from luthier.config.sections import MethodOptions
from luthier.foundation.errors import ModelError, TrainingError
from luthier.model.method import Apply
from luthier.model.methods._peft_adapter import PeftMethod, read_state
from luthier.model.methods._targets import ALL_LINEAR, TargetModules, check_rank, check_targets, has_conv1d

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedModel, TrainerCallback

MEANS = ("ipt", "exp_avg_ipt", "exp_avg_unc")  # what peft's allocator remembers of every weight
SEPARATOR = "|"


class Options(MethodOptions):
    """AdaLoRA's settings, as in peft's AdaLoraConfig."""

    name: str = "adalora"
    initial_rank: int = Field(12, ge=1, description="Rank that every update starts with (peft: init_r).")
    target_rank: int = Field(8, ge=1, description="Mean rank at the end (peft: target_r).")
    alpha: float = Field(16, gt=0, description="The update is scaled by alpha / initial_rank (peft: lora_alpha).")
    dropout: float = Field(0.0, ge=0, lt=1, description="Dropout on the adapter's input (peft: lora_dropout).")
    initial_share: float = Field(0.1, ge=0, lt=1, description="Share of the steps before ranks are cut (peft: tinit).")
    final_share: float = Field(
        0.3, ge=0, lt=1, description="Share of the steps at the end, after ranks are cut (peft: tfinal)."
    )
    steps_between_cuts: int = Field(10, ge=1, description="Ranks are cut at every so many steps (peft: deltaT).")
    beta1: float = Field(0.85, gt=0, lt=1, description="Smoothing of the importance.")
    beta2: float = Field(0.85, gt=0, lt=1, description="Smoothing of its uncertainty.")
    orthogonality_weight: float = Field(
        0.5, ge=0, description="Weight of the penalty that keeps singular vectors orthogonal (peft: orth_reg_weight)."
    )
    target_modules: TargetModules = Field(
        ALL_LINEAR,
        description="Modules that get an update: all-linear (the head excepted), names, or a regular expression.",
    )

    recommended_learning_rate: ClassVar[float] = 1e-3  # the paper's runs take 5e-4 to 2e-3
    in_adapter: ClassVar[Mapping[str, str]] = {
        "initial_rank": "init_r",
        "target_rank": "target_r",
        "alpha": "lora_alpha",
        "target_modules": "target_modules",
    }
    needs_all_gradients: ClassVar[bool] = True
    changes_weights: ClassVar[bool] = True
    of_the_run: ClassVar[frozenset[str]] = frozenset(
        {"dropout", "initial_share", "final_share", "steps_between_cuts", "beta1", "beta2", "orthogonality_weight"}
    )

    @model_validator(mode="after")
    def _can_be_cut(self) -> Options:
        if self.target_rank >= self.initial_rank:
            raise ValueError(
                f"target_rank ({self.target_rank}) must be below initial_rank ({self.initial_rank}): there is nothing to "
                "cut; lora has a fixed rank"
            )
        if self.initial_share + self.final_share >= 1:
            raise ValueError(
                f"initial_share ({self.initial_share}) and final_share ({self.final_share}) leave no steps to cut ranks in"
            )
        return self


class AdaLora(PeftMethod):
    """Trains updates of a budgeted rank; saved in peft's format."""

    run_settings: ClassVar[tuple[str, ...]] = (
        "lora_dropout", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step", "rank_pattern",
    )  # fmt: skip

    def __init__(self, options: Options) -> None:
        self.options: Options = options

    def peft_config(self, model: PreTrainedModel, how: Apply) -> Any:
        """peft's AdaLoraConfig; shares of the run's steps become counts.

        Raises:
            ModelError: so few steps that the last cut would come before anything is known of importance.
        """
        from peft import AdaLoraConfig

        own = self.options
        check_targets(model, own.target_modules, [], embeddings=False)
        check_rank(model, own.target_modules, own.initial_rank, "method.initial_rank")
        before_the_end = how.total_steps - int(own.final_share * how.total_steps)
        if before_the_end < 2:
            raise ModelError(
                f"method adalora cuts its ranks for the last time in step {before_the_end} of {how.total_steps}, and looks at "
                "gradients in the steps before: there are none.",
                "Give more steps (training.max_steps, num_train_epochs), lower method.final_share, or use method: lora.",
            )
        return AdaLoraConfig(
            task_type="CAUSAL_LM",
            init_r=own.initial_rank,
            target_r=own.target_rank,
            lora_alpha=own.alpha,  # type: ignore[arg-type, unused-ignore]
            lora_dropout=own.dropout,
            tinit=int(own.initial_share * how.total_steps),
            tfinal=int(own.final_share * how.total_steps),
            deltaT=own.steps_between_cuts,
            beta1=own.beta1,
            beta2=own.beta2,
            orth_reg_weight=own.orthogonality_weight,
            total_step=how.total_steps,
            target_modules=own.target_modules,
            fan_in_fan_out=has_conv1d(model),
        )

    def penalty(self, model: nn.Module) -> Tensor | None:
        """Equation 3 of the paper, as peft has it: the mean over all factors of ||P P^T - I||, times its weight."""
        import torch

        if not self.options.orthogonality_weight:
            return None
        norms = []
        for name, factor in model.named_parameters():
            if ".lora_A." in name or ".lora_B." in name:
                product = factor @ factor.T if ".lora_A." in name else factor.T @ factor
                norms.append(torch.linalg.matrix_norm(product - torch.eye(len(product), device=product.device)))
        return self.options.orthogonality_weight * torch.stack(norms).mean()

    def callbacks(self, model: nn.Module) -> list[TrainerCallback]:
        """Ranks are cut after every optimizer step, while its gradients are still there."""
        from transformers import TrainerCallback

        class CutRanks(TrainerCallback):  # type: ignore[misc]
            def on_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
                _cut_ranks(model, state.global_step + 1)

        return [CutRanks()]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the adapter with all its triplets, those that were switched off as zeros."""
        with _unresized(model):
            super().save(model, folder)

    def state(self, model: nn.Module) -> Mapping[str, Tensor]:
        """What the allocator remembers, and which triplets are on."""
        import torch

        allocator = _allocator(model)
        found = {
            f"{mean}{SEPARATOR}{name}": value for mean in MEANS for name, value in getattr(allocator, mean).items()
        }
        pattern: Any = model.peft_config["default"].rank_pattern or {}  # type: ignore[index, union-attr]
        found |= {f"rank_pattern{SEPARATOR}{name}": torch.tensor(on) for name, on in pattern.items()}
        # never empty: a checkpoint from before the first step has no means yet
        return found | {"started": torch.ones(1)}

    def load(self, model: nn.Module, folder: Path) -> None:
        """Put the weights back, and what the allocator remembers; the model may have had ranks cut since, or fewer."""
        with _unresized(model):
            super().load(model, folder)
        allocator, parameters = _allocator(model), dict(model.base_model.model.named_parameters())  # type: ignore[union-attr]
        pattern: dict[str, list[bool]] = {}
        allocator.reset_ipt()
        for place, value in read_state(folder).items():
            kind, _, name = place.partition(SEPARATOR)
            if kind in MEANS:
                getattr(allocator, kind)[name] = value.to(parameters[name])
            elif kind == "rank_pattern":
                pattern[name] = value.tolist()
        model.peft_config["default"].rank_pattern = pattern or None  # type: ignore[index, union-attr]


def _cut_ranks(model: Any, step: int) -> None:
    """Let a step's gradients count for the importance, and cut ranks where the schedule says so.

    A step that fp16's scaler gave up has gradients that are not finite. It says nothing of importance; a cut that falls on
    it is left to the next one, but for the last, which goes by what is known.

    Args:
        step: counted from 1.

    Raises:
        TrainingError: nothing is known at the last cut, since every step before was given up.
    """
    import torch

    config = model.peft_config["default"]
    last_cut = config.total_step - config.tfinal
    if step < last_cut:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        if not torch.isfinite(torch.nn.utils.get_total_norm(gradients)):
            return
        for name, parameter in model.named_parameters():
            if "lora_" in name and parameter.grad is None:  # no token came by, as in an expert of a mixture
                parameter.grad = torch.zeros_like(parameter)
    elif step == last_cut and not _allocator(model).exp_avg_ipt:
        raise TrainingError(
            f"method adalora cuts its ranks for the last time in step {step}, and every step before overflowed in fp16, so "
            "nothing is known of importance.",
            "Use bf16 or float32, or give more steps (training.max_steps, num_train_epochs).",
        )
    model.base_model.update_and_allocate(step)


def _allocator(model: nn.Module) -> Any:
    return model.base_model.rankallocator  # type: ignore[union-attr]


@contextmanager
def _unresized(model: Any) -> Iterator[None]:
    """Without the pattern of ranks, by which peft would write smaller tensors that it can't train on, or make room for such."""
    config = model.peft_config["default"]
    pattern, config.rank_pattern = config.rank_pattern, None
    try:
        yield
    finally:
        config.rank_pattern = pattern


def build(options: Options) -> AdaLora:
    """The method for these options."""
    return AdaLora(options)
