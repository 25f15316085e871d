"""Which of several processes this is, as torchrun, or any launcher that speaks its environment, tells each of them."""

from __future__ import annotations

import os
from dataclasses import dataclass

from luthier.foundation.errors import UserError


@dataclass(frozen=True, slots=True)
class Ranks:
    """A process among those of a run.

    Args:
        rank: its number; 0 writes what a run leaves behind.
        world_size: how many there are on all machines.
        local_rank: its number on this machine, which is the number of its GPU.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0


LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")  # some clusters number their machines with the second alone


def is_launched() -> bool:
    """Whether a launcher started this process."""
    return all(name in os.environ for name in LAUNCHED)


def ranks_here() -> int:
    """Processes of the run on this machine; all of them where the launcher does not say."""
    told = os.environ.get("LOCAL_WORLD_SIZE", "") if is_launched() else ""
    return int(told) if told.isdecimal() and int(told) else ranks().world_size


def ranks() -> Ranks:
    """This process's place, from RANK, WORLD_SIZE and LOCAL_RANK; alone where a launcher did not set all three.

    Raises:
        UserError: they are no numbers, or don't go together.
    """
    if not is_launched():
        return Ranks()
    found = {name: os.environ[name] for name in LAUNCHED}
    if not all(value.isdecimal() for value in found.values()) or not int(found["RANK"]) < int(found["WORLD_SIZE"]):
        told = ", ".join(f"{name}={value!r}" for name, value in found.items())
        raise UserError(
            f"the launcher's variables don't name a rank: {told}.", "Start with torchrun, or unset them to train alone."
        )
    return Ranks(*(int(found[name]) for name in LAUNCHED))
