"""How weights, gradients and optimizer states are shared by several devices, and what of it each one holds.

Sources: ZeRO (Rajbhandari et al. 2020, https://arxiv.org/abs/1910.02054, section 5), ZeRO-Offload (Ren et al. 2021,
https://arxiv.org/abs/2101.06840), PyTorch FSDP (Zhao et al. 2023, https://arxiv.org/abs/2304.11277).
"""

from __future__ import annotations

from dataclasses import dataclass

from luthier.config.plugins import ENGINES
from luthier.foundation.errors import UserError
from luthier.foundation.registry import nearest

GATHERED_UNITS = 2  # layers whose whole weights are there at once: the one that computes, and the next one on its way
BUCKET_BYTES = 200 * 1024**2  # gradients on their way between devices


@dataclass(frozen=True, slots=True)
class Strategy:
    """How devices share a run.

    Args:
        engine: the plug-in in training/engines that would run it.
        shards_states, shards_gradients, shards_weights: whether each device keeps only its share.
        offloads: weights and optimizer states wait in the host's memory.
        link_passes: how many times the bytes of all weights (of the trained ones, where weights are whole) go over the
            link in a step.
        description: for people.
    """

    name: str
    engine: str
    shards_states: bool = False
    shards_gradients: bool = False
    shards_weights: bool = False
    offloads: bool = False
    link_passes: float = 0.0
    description: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether luthier has its engine."""
        return self.engine in ENGINES.names()


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("single", "single", description="one device"),
        Strategy("ddp", "ddp", link_passes=2, description="every device holds everything; gradients are summed"),
        Strategy("zero-1", "deepspeed", True, link_passes=2, description="optimizer states are shared out"),
        Strategy("zero-2", "deepspeed", True, True, link_passes=2, description="gradients too"),
        Strategy("zero-3", "deepspeed", True, True, True, link_passes=3, description="weights too"),
        Strategy("fsdp", "fsdp", True, True, True, link_passes=3, description="all three are shared out, by PyTorch"),
        Strategy(
            "offload",
            "deepspeed",
            True,
            True,
            True,
            True,
            3,
            "zero-3, weights and optimizer states in the host's memory",
        ),
    )
}


def find_strategy(name: str | None, devices: int) -> Strategy:
    """A strategy by name; unset: single for one device, ddp for several.

    Raises:
        UserError: no such name, or one device for what needs several.
    """
    if name is None:
        return STRATEGIES["single" if devices == 1 else "ddp"]
    wanted = (
        name.lower().replace("_", "-").replace("zero1", "zero-1").replace("zero2", "zero-2").replace("zero3", "zero-3")
    )
    if wanted not in STRATEGIES:
        close = nearest(wanted, STRATEGIES)
        hint = f"Did you mean {' or '.join(close)}? " if close else ""
        raise UserError(f"there is no strategy named {name!r}.", f"{hint}Known: {', '.join(STRATEGIES)}.")
    if wanted == "single" and devices > 1:
        raise UserError(f"the strategy single uses one device, but {devices} were named.", "Use ddp, fsdp or zero-3.")
    return STRATEGIES[wanted]


@dataclass(frozen=True, slots=True)
class Shares:
    """What one device holds, in bytes, beside activations.

    Args:
        gathered: weights of other devices that are there for a moment, and gradients on their way.
        host: in the memory of the machine, for each device.
    """

    weights: int
    optimizer_states: int
    gradients: int
    gathered: int
    host: int


def shares(strategy: Strategy, devices: int, *, weights: int, states: int, gradients: int, unit: int) -> Shares:
    """What of a run one of `devices` devices holds. All sizes in bytes."""

    def part(size: int, shared: bool) -> int:
        return -(-size // devices) if shared else size

    own_weights = part(weights, strategy.shards_weights)
    own_states = part(states, strategy.shards_states)
    own_gradients = part(gradients, strategy.shards_gradients)
    gathered = 0 if strategy.name == "single" else min(BUCKET_BYTES, gradients)
    if strategy.shards_weights:
        gathered += min(GATHERED_UNITS * unit, weights)
    if strategy.offloads:
        return Shares(0, 0, 0, gathered, own_weights + own_states + own_gradients)
    return Shares(own_weights, own_states, own_gradients, gathered, 0)
