"""Muon: the momentum of each hidden matrix, made orthogonal (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/).

    B <- momentum B + (1 - momentum) g,   M = momentum B + (1 - momentum) g  (nesterov; else M = B)
    D = 0.2 sqrt(max(m, n)) * NewtonSchulz(M)

The factor gives an update the size that AdamW's has in a long pretraining, so that AdamW's rate and decay can be used there
(Liu et al. 2025, https://arxiv.org/abs/2502.16982, section 2.2). In short fine-tunings that is too little: with 1 / 0.2 of
AdamW's rate, where an update is as large as the rate, it learns as AdamW does (docs/optimizers.md); so that is its default.
Of a stack of experts each is made orthogonal by itself, as in that paper. Embeddings, the head, vectors and matrices of a
single row or column are trained by AdamW at the same rate, as the authors advise.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions
from luthier.foundation.devices import fast_precisions
from luthier.foundation.errors import TrainingError
from luthier.training.trained import Role, TrainedParameter

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # chosen by the authors for a steep slope at zero
TINY = 1e-7
ADAMW_RMS = 0.2  # root mean square of AdamW's updates, section 2.2 of the second paper


class Options(OptimizerOptions):
    """Muon's settings, named as in torch.optim.Muon; those of the AdamW beside it are training's."""

    name: str = "muon"
    momentum: float = Field(0.95, ge=0, lt=1, description="Decay of the momentum.")
    nesterov: bool = Field(True, description="Look ahead along the momentum.")
    ns_steps: int = Field(5, ge=1, le=20, description="Iterations that make the momentum orthogonal.")

    reads: ClassVar[frozenset[str]] = OPTIMIZER_SETTINGS

    @property
    def learning_rate_ratio(self) -> float:
        return 1 / ADAMW_RMS


def _is_ours(role: Role, shape: Sequence[int]) -> bool:
    """A matrix or a stack of them; one with a side of 1, as a depthwise convolution's, has nothing to be orthogonal to."""
    return role == "matrix" and len(shape) in (2, 3) and min(shape[-2:]) > 1


def check(options: Options, parameters: Sequence[TrainedParameter]) -> None:
    """Refuse a run in which nothing would be made orthogonal.

    Raises:
        TrainingError: no matrix of a hidden layer is trained.
    """
    if not any(_is_ours(parameter.role, parameter.shape) for parameter in parameters):
        raise TrainingError(
            "training.optim muon has nothing to do: this method trains no matrix of a hidden layer.",
            "Use optim: adamw, or a method that trains matrices, such as full or lora.",
        )


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """One momentum for a matrix, AdamW's two moments for the others."""
    return sum(parameter.bytes * (1 if _is_ours(parameter.role, parameter.shape) else 2) for parameter in parameters)


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """Of one matrix after the other (m <= n): the momentum that is looked ahead along, X and the next X, and two m x m; all
    but the first in the precision that it computes in."""
    import torch

    small = 2 if device == "cuda" or _precision(torch.device(device)) == "bfloat16" else 4
    found = []
    for p in parameters:
        if _is_ours(p.role, p.shape):
            square = small * p.count // max(p.shape[-2:]) * min(p.shape[-2:])
            found.append([p.bytes, small * p.count, small * p.count, square, square])
    return max(found, key=sum, default=[])


def _precision(device: torch.device) -> str:
    """Its authors run it in bfloat16; without units for it that would be slower, not faster."""
    return "bfloat16" if "bfloat16" in fast_precisions(device) else "float32"


def direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The orthogonal momentum, sized like AdamW's update."""
    if "momentum_buffer" not in state:
        state["momentum_buffer"] = gradient.new_zeros(gradient.shape)
    momentum = group["momentum"]
    kept = state["momentum_buffer"].lerp_(gradient, 1 - momentum)
    ahead = gradient.lerp(kept, momentum) if group["nesterov"] else kept
    update = newton_schulz(ahead, group["ns_steps"], group["precision"])
    return update.mul_(ADAMW_RMS * max(gradient.shape[-2:]) ** 0.5)


def newton_schulz(matrix: Tensor, steps: int, precision: str) -> Tensor:
    """About U V^T of the singular value decomposition U S V^T, for a matrix or each of a stack: the singular values end
    between 0.7 and 1.2.

    X <- a X + (b A + c A^2) X,  A = X X^T, from X = matrix / |matrix|; the odd polynomial acts on the singular values
    alone.
    """
    import torch

    first, third, fifth = COEFFICIENTS
    tall = matrix.shape[-2] > matrix.shape[-1]
    product = torch.addmm if matrix.ndim == 2 else torch.baddbmm
    found = matrix.to(getattr(torch, precision))
    found = found.mT if tall else found
    found = found / found.norm(dim=(-2, -1), keepdim=True).clamp(min=TINY)
    for _ in range(steps):
        gram = found @ found.mT
        found = product(found, product(gram, gram, gram, beta=third, alpha=fifth), found, beta=first)
    return (found.mT if tall else found).to(matrix.dtype)


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """Muon for the hidden matrices, AdamW beside it."""
    from luthier.training.optimizers._rules import PerParameter, beside_adamw

    options = cast(Options, training.optim)
    device = next(parameter.device for group in groups for parameter in group["params"])
    settings: dict[str, Any] = {
        "momentum": options.momentum,
        "nesterov": options.nesterov,
        "ns_steps": options.ns_steps,
        "precision": _precision(device),
    }
    return beside_adamw(
        training,
        groups,
        learning_rate,
        lambda group, parameter: _is_ours(group["role"], parameter.shape),
        lambda ours: PerParameter(ours, learning_rate, direction, **settings),
    )
