"""APOLLO: the gradient itself, scaled as Adam would scale it, which is estimated in a random low-rank subspace (Zhu et
al. 2024, https://arxiv.org/abs/2412.05270, algorithm 1).

For a gradient G of m rows and n columns, m <= n (else the transposes), with P of rank x m drawn from N(0, 1 / rank):

    R = P G                                                                                  (rank x n)
    N = Adam's direction of R, its moments being rank x n
    s_j = |N_j| / |R_j|  for each column j (scale_type channel), or s = |N| / |R| for all (tensor: APOLLO-Mini)
    D = sqrt(scale) * G diag(s),  its norm growing by no more than norm_growth a step (Chen et al. 2024, Fira, section 4.3)

P follows from the seed, so it is drawn anew in each step and not kept; every update_proj_gap steps it is another one.
Everything that is not a matrix of a hidden layer, or has a side shorter than the rank, is trained by AdamW.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions
from luthier.foundation.seeding import derive_seed
from luthier.training.optimizers import _low_rank
from luthier.training.trained import TrainedParameter

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig

TINY = 1e-8  # added to norms that are divided by, as in the authors' code


class Options(OptimizerOptions):
    """APOLLO's settings, named as in the paper's code; its Adam's are training.adam_beta1, adam_beta2, adam_epsilon."""

    name: str = "apollo"
    rank: int = Field(
        128, ge=1, description="Dimensions in which the scaling is estimated; 1 is enough with scale_type tensor."
    )
    update_proj_gap: int = Field(200, ge=1, description="Steps after which the subspace is drawn anew.")
    scale_type: Literal["channel", "tensor"] = Field(
        "channel", description="One scaling for each column (or row, of the longer side), or one for the whole matrix."
    )
    scale: float | None = Field(
        None, gt=0, description="The update is multiplied by its square root; unset: 1 with channel, 128 with tensor."
    )
    norm_growth: float = Field(1.01, gt=1, description="An update's norm is at most this many times the one before.")

    reads: ClassVar[frozenset[str]] = OPTIMIZER_SETTINGS
    transformers_name: ClassVar[str | None] = "apollo_adamw"

    @property
    def learning_rate_ratio(self) -> float:
        # its steps are sqrt(rank / m) of AdamW's (section 4 of the paper): at rank 128 about half for m = 576
        return 2.0


def check(options: Options, parameters: Sequence[TrainedParameter]) -> None:
    """Refuse a run in which nothing would be projected."""
    _low_rank.check_rank("apollo", options.rank, parameters)


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """Of a projected matrix two moments of rank x max(m, n), and one norm; of others, AdamW's."""
    count = 0
    for parameter in parameters:
        if _low_rank.is_projected(parameter.role, parameter.shape, options.rank):
            moment = _low_rank.kept_numbers(parameter.shape, options.rank)
            count += 2 * moment * parameter.number_bytes
        else:
            count += 2 * parameter.bytes
    return count


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """Of one matrix after the other: the gradient scaled, and once more for its limit; Adam's direction of the projected one."""
    rank = cast(Options, training.optim).rank
    found = []
    for p in parameters:
        if _low_rank.is_projected(p.role, p.shape, rank):
            low = _low_rank.kept_numbers(p.shape, rank) * p.number_bytes
            found.append([p.bytes, p.bytes, low, low])
    return max(found, key=sum, default=[])


def direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """The scaled gradient."""
    from luthier.training.optimizers._rules import adam_direction

    def rule(flat: Tensor) -> Tensor:
        low = projected(flat, state, group)
        normal = adam_direction(low, state, group)
        along = (-2,) if group["scale_type"] == "channel" else (-2, -1)
        scaling = normal.norm(dim=along, keepdim=True) / (low.norm(dim=along, keepdim=True) + TINY)
        return limited(flat * scaling * group["scale"] ** 0.5, state, group["norm_growth"])

    return _low_rank.on_short_side(gradient, rule)


def projected(flat: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """P G, with a P that is the same for the same seed and step, on every rank and for all matrices of a size."""
    import torch

    drawn = (state["step"] - 1) // group["update_proj_gap"]
    seed = derive_seed(group["seed"], "apollo", *flat.shape, drawn)
    generator = torch.Generator(device=flat.device).manual_seed(seed)
    numbers = torch.randn(group["rank"], flat.shape[-2], generator=generator, device=flat.device)
    return numbers.mul_(group["rank"] ** -0.5).to(flat.dtype) @ flat


def limited(update: Tensor, state: dict[str, Any], growth: float) -> Tensor:
    """The update, scaled down where its norm has grown more than `growth` times since the last one that was not zero.

    Zero is no norm to grow from: LoRA's first factor has no gradient in its first step, nor has an expert that no token
    came to, and both would stand still for good.
    """
    norm = update.norm(dim=(-2, -1), keepdim=True)
    if "norm" in state:
        before = state["norm"]
        allowed = norm.where(before == 0, norm.minimum(growth * before))
        update = update * (allowed / (norm + TINY))
        norm = before.where(allowed == 0, allowed)
    state["norm"] = norm
    return update


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """APOLLO for the hidden matrices, AdamW beside it."""
    options = cast(Options, training.optim)
    return _low_rank.projected_beside_adamw(
        training,
        groups,
        learning_rate,
        direction,
        options.rank,
        update_proj_gap=options.update_proj_gap,
        scale_type=options.scale_type,
        scale=options.scale or {"channel": 1.0, "tensor": 128.0}[options.scale_type],
        norm_growth=options.norm_growth,
        seed=training.seed,
    )
