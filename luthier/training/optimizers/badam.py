"""BAdam: Adam on one block of the model at a time (Luo, Yu and Li 2024, https://arxiv.org/abs/2404.02827, algorithm 1).

The trained parameters are divided into blocks: each layer is one, and so is each embedding table and an untied head; what
else stands outside the layers goes with the block before it. `switch_block_every` steps of AdamW are made on one block
while the others hold still and need no gradient; then its moments are dropped and the next block's start at zero. When
all have had their turn, another round begins.

Moments and gradients are held for one block, and backward stops at the lowest trained one: with D layers, Adam's 12 bytes
for each weight become about 12 / D.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from pydantic import Field

from luthier.config.sections import OPTIMIZER_SETTINGS, OptimizerOptions
from luthier.foundation.errors import TrainingError
from luthier.training.trained import TrainedParameter, total_bytes

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from luthier.config.training_section import TrainingConfig


class Options(OptimizerOptions):
    """BAdam's settings, named as in the paper's code; its Adam's are training.adam_beta1, adam_beta2, adam_epsilon."""

    name: str = "badam"
    switch_block_every: int = Field(50, ge=1, description="Steps on a block before the next has its turn.")
    switch_mode: Literal["random", "ascending", "descending"] = Field(
        "random",
        description="Order of the blocks: drawn anew for each round, from the input up, or from the head down.",
    )

    reads: ClassVar[frozenset[str]] = OPTIMIZER_SETTINGS
    counts: ClassVar[frozenset[str]] = frozenset({"steps_made"})
    makes_all_gradients: ClassVar[bool] = False


def blocks(parameters: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Names of the parameters of each block, by the block's name, in the model's order.

    Args:
        parameters: name and role of each.
    """
    found: dict[str, list[str]] = {}
    last = ""
    for name, role in parameters:
        layer = re.match(r"(.*?\.\d+)\.", name)
        if layer:
            last = layer[1]
        elif role == "embedding" or not last:
            last = name.rpartition(".")[0] or name
        found.setdefault(last, []).append(name)
    return found


def check(options: Options, parameters: Sequence[TrainedParameter]) -> None:
    """Refuse a run with one block, which would be AdamW under another name.

    Raises:
        TrainingError: there is one block.
    """
    found = blocks([(parameter.name, parameter.role) for parameter in parameters])
    if len(found) < 2:
        raise TrainingError(
            f"training.optim badam has one block to train ({next(iter(found))}), so there is none to switch to.",
            "Use optim: adamw, or a method that trains more layers.",
        )


def remark(options: Options, parameters: Sequence[TrainedParameter], total_steps: int) -> str | None:
    """What is worth knowing of the blocks and the run's length."""
    count = len(blocks([(parameter.name, parameter.role) for parameter in parameters]))
    wanted = count * options.switch_block_every
    if total_steps >= wanted:
        return None
    missed = count - -(-total_steps // options.switch_block_every)
    return (
        f"badam: {count} blocks of {options.switch_block_every} steps need {wanted:,} steps for a round, the run has "
        f"{total_steps:,}: {missed} blocks never learn; lower training.optim.switch_block_every to {max(1, total_steps // count)}"
    )


def _largest_block(parameters: Sequence[TrainedParameter]) -> int:
    by_name = {parameter.name: parameter for parameter in parameters}
    found = blocks([(parameter.name, parameter.role) for parameter in parameters])
    return max(total_bytes(by_name[name] for name in names) for names in found.values())


def state_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """Two moments for the largest block."""
    return 2 * _largest_block(parameters)


def gradient_bytes(options: Options, parameters: Sequence[TrainedParameter]) -> int:
    """Those of the largest block."""
    return _largest_block(parameters)


def build(training: TrainingConfig, groups: list[dict[str, Any]], learning_rate: float) -> Optimizer:
    """AdamW over all groups, of which one block at a time has gradients."""
    from luthier.training.optimizers._blocks import BlockAdamW

    options = cast(Options, training.optim)
    return BlockAdamW(
        groups,
        learning_rate,
        blocks,
        betas=(training.adam_beta1, training.adam_beta2),
        eps=training.adam_epsilon,
        switch_block_every=options.switch_block_every,
        switch_mode=options.switch_mode,
        seed=training.seed,
    )
