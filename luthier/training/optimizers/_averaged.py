"""The schedule-free AdamW of schedule_free, see there."""

from __future__ import annotations

from typing import Any

import torch
from schedulefree import AdamWScheduleFree


class ExactScheduleFree(AdamWScheduleFree):  # type: ignore[misc]
    """The library's optimizer, whose weights come back from an evaluation as they went.

    The library makes x from y and z and then y again from x and z, which rounds twice: a run that was evaluated or saved
    more often would end with other bits. Here y is kept while the weights are x, in the state, so that a checkpoint has it.
    Nor are gradients spoilt, which callbacks may look at after the step: the library divides them in place.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        """The library's step, on a copy of the gradients."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        gradients = [parameter.grad for parameter in parameters]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient.clone() if gradient is not None else None
        super().step()
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient

    @torch.no_grad()
    def eval(self) -> None:
        """Set the weights to the average x."""
        for group in self.param_groups:
            if group["train_mode"]:
                for parameter in group["params"]:
                    state = self.state.get(parameter)
                    if state and "z" in state:
                        state["y"] = parameter.detach().clone()
        super().eval()

    @torch.no_grad()
    def train(self) -> None:
        """Set the weights to y, where gradients are taken."""
        for group in self.param_groups:
            if not group["train_mode"]:
                for parameter in group["params"]:
                    state = self.state.get(parameter)
                    if state and "y" in state:
                        parameter.copy_(state.pop("y"))
                group["train_mode"] = True
