"""How an optimizer of ours is written: a rule for one parameter, and a loop that applies it; and optimizers side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from luthier.config.training_section import TrainingConfig

# (gradient, what is kept for the parameter, its group) -> direction D of the parameter's shape
Rule = Callable[[Tensor, dict[str, Any], dict[str, Any]], Tensor]


class PerParameter(Optimizer):
    """theta <- (1 - lr * weight_decay) * theta - lr * D, with D from a rule; the decay is decoupled from the gradient.

    Args:
        rule: called once for each parameter with a gradient; `state["step"]` counts from 1.
        settings: what the rule finds in the group.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float, rule: Rule, **settings: Any) -> None:
        super().__init__(groups, {"lr": learning_rate, "weight_decay": 0.0, **settings})
        self._rule = rule

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            rate, decay = group["lr"], group["weight_decay"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                state["step"] = state.get("step", 0) + 1
                direction = self._rule(parameter.grad, state, group)
                if decay:
                    parameter.mul_(1 - rate * decay)
                parameter.add_(direction, alpha=-rate)
                del direction  # before the next one is made


class Together(Optimizer):
    """Several optimizers, each with parameters of its own, as one: their groups and their state are shared with it."""

    def __init__(self, parts: Sequence[Optimizer]) -> None:
        groups = [group for part in parts for group in part.param_groups]
        settings = {key: value for part in parts for key, value in part.defaults.items()}
        super().__init__(groups, {})
        self.defaults = settings  # only now, or each group would be given the other parts' settings too
        self._parts = parts
        for part in parts:
            part.state = self.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Let each make its step."""
        for part in self._parts:
            part.step()


def beside_adamw(
    training: TrainingConfig,
    groups: list[dict[str, Any]],
    learning_rate: float,
    meant: Callable[[dict[str, Any], Tensor], bool],
    make: Callable[[list[dict[str, Any]]], Optimizer],
) -> Optimizer:
    """An optimizer for the parameters that it is meant for, and AdamW for the others.

    Args:
        meant: says of a group's parameter whether it is.
        make: the optimizer for the groups of those.
    """
    from luthier.training.optimizers.adamw import build

    ours: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups:
        chosen = [meant(group, parameter) for parameter in group["params"]]
        for wanted, found in ((True, ours), (False, others)):
            if wanted in chosen:
                columns = {
                    key: [item for item, mine in zip(group[key], chosen, strict=True) if mine == wanted]
                    for key in ("params", "param_names", "param_places")
                }
                found.append({**group, **columns})
    return Together([*([make(ours)] if ours else []), *([build(training, others, learning_rate)] if others else [])])


def adam_direction(gradient: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    """m_hat / (sqrt(v_hat) + eps), of Adam (Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, algorithm 1).

    m <- beta1 m + (1 - beta1) g,  v <- beta2 v + (1 - beta2) g^2,  m_hat = m / (1 - beta1^t),  v_hat = v / (1 - beta2^t).
    """
    beta1, beta2 = group["betas"]
    step = state["step"]
    if "exp_avg" not in state:
        state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(gradient), torch.zeros_like(gradient)
    mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
    square = state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
    root = square.sqrt().div_((1 - beta2**step) ** 0.5).add_(group["eps"])
    found: Tensor = mean.div(root).div_(1 - beta1**step)
    return found
