"""Whether something is dropped out in training."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.dropout import _DropoutNd

RATES = ("attention_dropout", "dropout", "dropout_p")  # what attention modules call the rate that they hand on


def drops_out(model: nn.Module) -> bool:
    """Whether a module drops anything out in training: a part that does, or a rate that attention is handed."""
    return any(
        (isinstance(module, _DropoutNd) and module.p > 0)
        or any(isinstance(rate, float) and rate > 0 for rate in (getattr(module, name, None) for name in RATES))
        for module in model.modules()
    )
