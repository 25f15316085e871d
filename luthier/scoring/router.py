"""The load-balancing loss of a mixture of experts, by the family's own function in transformers.

Source: Fedus, Zoph, Shazeer, Switch Transformers (2021), equations 4 to 6: experts x sum over experts of (share of
tokens routed to it) x (mean probability given to it). It is a mean over the tokens of one forward pass, padding left out;
tokens that several sequences share are counted once where the route computes them once.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from luthier.foundation.errors import ModelError

PARAMETERS = ["gate_logits", "num_experts", "top_k", "attention_mask"]


class RouterLoss:
    """The loss of one model, times its coefficient.

    Args:
        model: the transformers model.
        coefficient: weight of the loss; None: the model's own config decides, where output_router_logits is true.

    Raises:
        ModelError: a coefficient is given, and transformers has no such loss for this kind of model.
    """

    def __init__(self, model: PreTrainedModel, coefficient: float | None = None) -> None:
        function, self._experts, self._top_k = _of_family(model)
        config: Any = model.config.get_text_config()
        if coefficient is None:
            asked = bool(getattr(config, "output_router_logits", False))
            coefficient = float(getattr(config, "router_aux_loss_coef", 0.0)) if asked else 0.0
        elif coefficient and function is None:
            raise ModelError(
                f"model.router_aux_loss_coef is {coefficient:g}, but transformers has no load-balancing loss for "
                f"{type(model).__name__}.",
                "Remove the setting.",
            )
        self.coefficient = coefficient if function is not None else 0.0
        self.possible = function is not None
        self._function = function

    @property
    def arguments(self) -> dict[str, bool]:
        """What the backbone must be told, so that it keeps the router's logits."""
        return {"output_router_logits": True} if self.coefficient else {}

    def __call__(self, output: Any, attention_mask: Tensor | None = None) -> Tensor | None:
        """The weighted loss of a backbone's output; None where there is none.

        Args:
            attention_mask: [R, L], 0 at padding.
        """
        if not self.coefficient or self._function is None:
            return None
        loss = self._function(output.router_logits, self._experts, self._top_k, attention_mask)
        return self.coefficient * loss


def _of_family(model: PreTrainedModel) -> tuple[Callable[..., Tensor] | None, int, int]:
    """The family's function with its number of experts and of those that a token takes; None where it has none."""
    function = getattr(sys.modules[type(model).__module__], "load_balancing_loss_func", None)
    experts, top_k = getattr(model, "num_experts", None), getattr(model, "num_experts_per_tok", None)
    if function is None or not isinstance(experts, int) or not isinstance(top_k, int):
        return None, 0, 0
    if list(inspect.signature(function).parameters) != PARAMETERS:
        return None, 0, 0
    return function, experts, top_k
