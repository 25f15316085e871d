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
        description: for people.
    """

    name: str
    engine: str
    shards_states: bool = False
    shards_gradients: bool = False
    shards_weights: bool = False
    offloads: bool = False
    description: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether luthier has its engine."""
        return self.engine in ENGINES.names()


STRATEGIES: dict[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("single", "single", description="one device"),
        Strategy("ddp", "ddp", description="every device holds everything; gradients are summed"),
        Strategy("zero-1", "deepspeed", True, description="optimizer states are shared out"),
        Strategy("zero-2", "deepspeed", True, True, description="gradients too"),
        Strategy("zero-3", "deepspeed", True, True, True, description="weights too"),
        Strategy("fsdp", "fsdp", True, True, True, description="all three are shared out, by PyTorch"),
        Strategy(
            "offload",
            "deepspeed",
            True,
            True,
            True,
            True,
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

    own_weights = _part(weights, devices, strategy.shards_weights)
    own_states = _part(states, devices, strategy.shards_states)
    own_gradients = _part(gradients, devices, strategy.shards_gradients)
    gathered = 0 if strategy.name == "single" else min(BUCKET_BYTES, gradients)
    if strategy.shards_weights:
        gathered += min(GATHERED_UNITS * unit, weights)
    if strategy.offloads:
        return Shares(0, 0, 0, gathered, own_weights + own_states + own_gradients)
    return Shares(own_weights, own_states, own_gradients, gathered, 0)


def _part(size: int, devices: int, shared: bool) -> int:
    return -(-size // devices) if shared else size


def linked(strategy: Strategy, devices: int, *, batches: int, weights: int, trained: int, gradients: int) -> float:
    """Bytes that one device sends to the others in a step (and as many that it gets).

    Whole gradients are summed once a step, which sends them twice (each device sums a share, then all shares go round);
    shared ones go to their device once for each batch. Updated weights go round once where only their states are shared; where
    they are shared themselves all of them, frozen or not, are gathered for every batch's forward pass and again for its
    backward pass (ZeRO, section 7).

    Args:
        batches: of a step. weights: all. trained: the weights that learn. All but the first in bytes.
    """
    if devices == 1 or strategy.name == "single":
        return 0.0
    if strategy.shards_weights:
        sent = batches * (2 * weights + gradients)
    elif strategy.shards_gradients:
        sent = batches * gradients + trained
    elif strategy.shards_states:
        sent = gradients + trained
    else:
        sent = 2 * gradients
    return sent * (devices - 1) / devices


def from_and_to_host(strategy: Strategy, devices: int, *, batches: int, weights: int, gradients: int) -> float:
    """Bytes between a device and the host's memory in a step: its share of the weights comes for every batch's forward pass
    and again for its backward pass, its share of the gradients goes back."""
    return batches * (2 * weights + gradients) / devices if strategy.offloads else 0.0


def updated(strategy: Strategy, devices: int, *, trained: int, states: int, gradients: int) -> float:
    """Bytes that a step's update moves in a device's memory (under offload: in the host's, all devices' together): gradients
    are read and written three times, trained weights and states twice; of what is shared, a device's own part."""
    if strategy.offloads:
        devices = 1  # they share the host's memory, and its rate
    own = _part(trained, devices, strategy.shards_states) + _part(states, devices, strategy.shards_states)
    return 3 * _part(gradients, devices, strategy.shards_gradients) + 2 * own
