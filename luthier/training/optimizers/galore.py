"""GaLore: Adam's moments in a low-rank subspace of each matrix's gradient (Zhao et al. 2024,
https://arxiv.org/abs/2403.03507, algorithm 2).

For a gradient G of m rows and n columns, m <= n (else the transposes):

    every update_proj_gap steps:  P = the first `rank` left singular vectors of G          (m x rank, eq. 12)
    R = P^T G                                                                                (rank x n)
    N = Adam's direction of R, its moments being rank x n;   W <- W - lr * scale * P N       (definition 3.6)

The moments stay as they are when P changes, as in the paper. Everything that is not a matrix of a hidden layer, or has a
side shorter than the rank, is trained by AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, cast

from pydantic import Field

from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions
from luthier.training.optimizers import _low_rank
from luthier.training.trained import TrainedParameter

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(OptimizerOptions):
    """GaLore's settings, named as in the paper's code; its Adam's are training.adam_beta1, adam_beta2, adam_epsilon."""

    name: str = "galore"
    rank: int = Field(128, ge=1, description="Dimensions that each matrix's gradient is projected to.")
    update_proj_gap: int = Field(200, ge=1, description="Steps after which the subspace is found anew.")
    scale: float = Field(0.25, gt=0, description="The projected update is multiplied by it (alpha in the paper).")

    reads: ClassVar[frozenset[str]] = OPTIMIZER_SETTINGS
    transformers_name: ClassVar[str | None] = "galore_adamw"

    @property
    def learning_rate_ratio(self) -> float:
        return 1 / self.scale


def check(options: Options, parameters: Sequence[TrainedParameter]) -> None:
    """Refuse a run in which nothing would be projected."""
    _low_rank.check_rank("galore", options.rank, parameters)


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """Of a projected matrix two moments of rank x max(m, n) and P of min(m, n) x rank; of others, AdamW's."""
    count = 0
    for parameter in parameters:
        if _low_rank.is_projected(parameter.role, parameter.shape, options.rank):
            rows, columns = parameter.shape[-2:]
            moment = _low_rank.kept_numbers(parameter.shape, options.rank)
            count += (2 * moment + moment // max(rows, columns) * min(rows, columns)) * parameter.number_bytes
        else:
            count += 2 * parameter.bytes
    return count


def update_tensors(training: TrainingConfig, parameters: Sequence[TrainedParameter], device: str) -> list[int]:
    """Of one matrix after the other (m <= n), where its subspace is found: G, G G^T, its eigenvectors and twice as much for
    LAPACK, P and its flipped columns; the direction, and Adam's, take less."""
    rank = cast(Options, training.optim).rank
    found = []
    for p in parameters:
        if _low_rank.is_projected(p.role, p.shape, rank):
            many, short = 4 * math.prod(p.shape[:-2]), min(p.shape[-2:])
            square, columns = many * short * short, many * short * rank
            found.append([4 * p.count, square, square, 2 * square, columns, columns])
    return max(found, key=sum, default=[])


def direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """scale * P N, of the gradient's shape."""
    from luthier.training.optimizers._rules import adam_direction

    def rule(flat: Tensor) -> Tensor:
        projection = subspace(flat, state, group)
        return (projection @ adam_direction(projection.mT @ flat, state, group)).mul_(group["scale"])

    return _low_rank.on_short_side(gradient, rule)


def subspace(flat: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """P of each matrix, found anew every update_proj_gap steps.

    A matrix without a gradient at that moment (an expert that no token came to, LoRA's first factor in its first step)
    keeps what it had, at first nothing, until a gradient comes.
    """
    if "projection" not in state:
        state["projection"] = flat.new_zeros(*flat.shape[:-1], group["rank"])
    projection: Tensor = state["projection"]
    stack, kept = (tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (flat, projection))
    if (state["step"] - 1) % group["update_proj_gap"] == 0:
        state["sought"] = stack.new_ones(len(stack)).bool()
    if "sought" in state:
        found = state["sought"] & (stack != 0).any(dim=-1).any(dim=-1)
        if found.any():
            kept[found] = same_on_all_ranks(left_singular_vectors(stack[found], group["rank"]))
        state["sought"] &= ~found
        if not state["sought"].any():
            del state["sought"]
    return projection


def left_singular_vectors(gradient: Tensor, rank: int) -> Tensor:
    """The first `rank` of them, as columns, for a matrix with no more rows than columns.

    They are the eigenvectors of G G^T with the largest eigenvalues: three to ten times as fast as the singular value
    decomposition on a CPU, and the small ones, which that product blurs, are not asked for. Each one's largest component
    is made positive, so that moments keep their meaning where a new subspace is the old one.
    """
    import torch

    matrix = gradient.float()
    vectors: Tensor = torch.linalg.eigh(matrix @ matrix.mT)[1]  # eigenvalues ascend
    first = vectors[..., -rank:].flip(-1)
    largest = first.gather(-2, first.abs().argmax(dim=-2, keepdim=True))
    return (first * largest.sign()).to(gradient.dtype).contiguous()


def same_on_all_ranks(projection: Tensor) -> Tensor:
    """The first rank's: the signs of singular vectors are the library's choice, and moments must mean the same."""
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return projection
    # nccl takes no tensor of the CPU: only the matrix stands there on which an optimizer is tried, the same for all ranks
    if projection.is_cuda or dist.get_backend() != "nccl":
        dist.broadcast(projection, src=0)
    return projection


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """GaLore for the hidden matrices, AdamW beside it."""
    options = cast(Options, training.optim)
    return _low_rank.projected_beside_adamw(
        training,
        groups,
        learning_rate,
        direction,
        options.rank,
        update_proj_gap=options.update_proj_gap,
        scale=options.scale,
    )
