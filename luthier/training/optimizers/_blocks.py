"""The block-coordinate AdamW of badam, see there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.optim import AdamW

from luthier.foundation.seeding import permutation

Naming = Callable[[Sequence[tuple[str, str]]], dict[str, list[str]]]


class BlockAdamW(AdamW):
    """torch's AdamW, of whose parameters one block at a time needs a gradient and has moments.

    How many steps were made stands in every group as `steps_made`; which block is trained follows from it.
    """

    def __init__(
        self,
        groups: list[dict[str, Any]],
        learning_rate: float,
        naming: Naming,
        *,
        betas: tuple[float, float],
        eps: float,
        switch_block_every: int,
        switch_mode: str,
        seed: int,
    ) -> None:
        super().__init__(groups, lr=learning_rate, betas=betas, eps=eps, fused=True)
        # a step lost to an fp16 overflow must not count: with this, the scaler leaves it out instead of telling the kernel
        self._step_supports_amp_scaling = False
        self._every, self._mode, self._seed = switch_block_every, switch_mode, seed
        placed = sorted(
            (place, name, group["role"])
            for group in self.param_groups
            for place, name in zip(group["param_places"], group["param_names"], strict=True)
        )
        by_name = {
            name: parameter
            for group in self.param_groups
            for name, parameter in zip(group["param_names"], group["params"], strict=True)
        }
        found = naming([(name, role) for _, name, role in placed])
        self._blocks = [[by_name[name] for name in names] for names in found.values()]
        for group in self.param_groups:
            group["steps_made"] = 0

    @property
    def active(self) -> int:
        """The block whose turn it is."""
        turn: int = self.param_groups[0]["steps_made"] // self._every
        place, count = turn % len(self._blocks), len(self._blocks)
        if self._mode == "ascending":
            return place
        if self._mode == "descending":
            return count - 1 - place
        return permutation(count, self._seed, "badam", turn // count)[place]

    def train(self) -> None:
        """Ask for gradients of the active block alone."""
        active = self.active
        for number, block in enumerate(self._blocks):
            for parameter in block:
                parameter.requires_grad_(number == active)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """AdamW's step on the active block; at the end of its turn its moments go."""
        before = self.active
        super().step()
        for group in self.param_groups:
            group["steps_made"] += 1
        if self.param_groups[0]["steps_made"] % self._every == 0:
            for parameter in self._blocks[before]:
                self.state.pop(parameter, None)
