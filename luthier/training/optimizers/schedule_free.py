"""Schedule-free AdamW (Defazio et al. 2024, https://arxiv.org/abs/2405.15682, algorithm 1), by the library schedulefree.

    y = (1 - beta1) z + beta1 x           gradients are taken at y
    z <- z - lr * AdamW's direction of g, without a first moment
    x <- (1 - c) x + c z                  an average; x is what is evaluated and saved

The average takes the place of a schedule that falls: lr_scheduler_type is constant, or constant_with_warmup.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions
from luthier.foundation.errors import TrainingError, import_extra
from luthier.training.trained import TrainedParameter, total_bytes

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(OptimizerOptions):
    """Settings of the average, named as in the library; training.adam_beta1 is how near to it gradients are taken."""

    name: str = "schedule_free"
    r: float = Field(0.0, ge=0, description="The average weighs step t by t to this power; 0: all alike.")
    weight_lr_power: float = Field(
        2.0,
        ge=0,
        description="It also weighs a step by the largest rate so far to this power, so that warm-up counts less.",
    )

    reads: ClassVar[frozenset[str]] = OPTIMIZER_SETTINGS
    schedules: ClassVar[tuple[str, ...]] = ("constant", "constant_with_warmup")
    counts: ClassVar[frozenset[str]] = frozenset({"k", "weight_sum", "lr_max", "scheduled_lr", "train_mode"})
    gives_an_average: ClassVar[bool] = True
    transformers_name: ClassVar[str | None] = "schedule_free_adamw"
    package: ClassVar[str | None] = "schedulefree"


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """z and the second moment; and a third: a copy of the gradients in a step, y while the weights are x."""
    return 3 * total_bytes(parameters)


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """The denominators: the library divides a group at once, and has the last one's still when it makes the next one's."""
    return [p.bytes for p in parameters]


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """The library's AdamWScheduleFree, made to switch without loss.

    Raises:
        MissingExtraError: schedulefree is absent. TrainingError: a first decay of 0, where gradients are taken at z and the
            average could not be made from y and z.
    """
    import_extra("schedulefree", extra="optimizers", purpose="training.optim: schedule_free")
    if training.adam_beta1 == 0:
        raise TrainingError(
            "training.adam_beta1 is 0, with which schedule_free has no average to give.",
            "Leave it at 0.9, or use optim: adamw.",
        )
    from luthier.training.optimizers._averaged import ExactScheduleFree

    options = cast(Options, training.optim)
    return ExactScheduleFree(
        groups,
        lr=learning_rate,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        r=options.r,
        weight_lr_power=options.weight_lr_power,
    )
