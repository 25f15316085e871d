"""What galore and apollo share: which matrices are projected, and on which side.

A matrix G of m rows and n columns is projected on its shorter side, so that what is kept has rank x max(m, n) numbers.
Stacks of matrices (a mixture's experts) are projected each.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import TrainingError
from luthier.training.trained import Role, TrainedParameter

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


def is_projected(role: Role, shape: Sequence[int], rank: int) -> bool:
    """Whether a parameter is a hidden layer's matrix whose sides are both at least `rank`."""
    return role == "matrix" and min(shape[-2:]) >= rank


def kept_numbers(shape: Sequence[int], rank: int) -> int:
    """Numbers of one projected moment."""
    *above, rows, columns = shape
    return math.prod(above) * rank * max(rows, columns)


def on_short_side(gradient: Tensor, rule: Callable[[Tensor], Tensor]) -> Tensor:
    """A rule for matrices with no more rows than columns, applied to the gradient or to its transpose."""
    return rule(gradient.mT).mT if gradient.shape[-2] > gradient.shape[-1] else rule(gradient)


def projected_beside_adamw(
    training: TrainingConfig,
    groups: list[dict[str, Any]],
    learning_rate: float,
    rule: Callable[[Tensor, dict[str, Any], dict[str, Any]], Tensor],
    rank: int,
    **settings: Any,
) -> Optimizer:
    """A rule for the projected matrices, with AdamW's own settings and these; AdamW for all other parameters."""
    from luthier.training.optimizers._rules import PerParameter, beside_adamw

    adams = {"betas": (training.adam_beta1, training.adam_beta2), "eps": training.adam_epsilon}
    return beside_adamw(
        training,
        groups,
        learning_rate,
        lambda group, parameter: is_projected(group["role"], parameter.shape, rank),
        lambda ours: PerParameter(ours, learning_rate, rule, **adams, rank=rank, **settings),
    )


def check_rank(name: str, rank: int, parameters: Sequence[TrainedParameter]) -> None:
    """Refuse what has nothing to project.

    Raises:
        TrainingError: no trained matrix has both sides of at least `rank`.
    """
    matrices = [parameter.shape for parameter in parameters if parameter.role == "matrix"]
    if any(is_projected("matrix", shape, rank) for shape in matrices):
        return
    largest = max((min(shape[-2:]) for shape in matrices), default=0)
    raise TrainingError(
        f"training.optim {name} has nothing to project: its rank is {rank}, and "
        + (f"the shorter side of no trained matrix exceeds {largest}." if matrices else "no matrix is trained."),
        "Lower training.optim.rank, train whole weights (method: full or freeze), or use optim: adamw, which costs as little here.",
    )
