"""Which modules of a model compute themselves fused, decided anew at every call.

`fuse` gives modules a forward of their own that asks, each time, whether the fused function computes the same as the
module would; if not, the module's class computes as it always did. So adapters may be disabled, merged, switched or
added to, hooks set, and precision changed, at any time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from luthier.scoring.backbone import backbone_of
from luthier.scoring.fused.attention_block import attention_forward, is_known
from luthier.scoring.fused.formulas import formula
from luthier.scoring.fused.gated_mlp import PARTS, GatedMlp
from luthier.scoring.fused.low_rank import LowRankLinears, LowRankMaps, is_lora_linear, low_rank, product_dtype
from luthier.scoring.fused.narrowing import narrow
from luthier.scoring.fused.norm import RootMeanSquareNorm
from luthier.scoring.fused.rotary import turning


def fuse(model: PreTrainedModel) -> Counter[str]:
    """Let the modules of a transformers model that can compute fused do so, and its last layer where it is read only.

    Returns:
        how many modules of each class were found.
    """
    found: Counter[str] = Counter()
    if narrow(backbone_of(model)):
        found[type(backbone_of(model).layers[-1]).__name__] += 1
    for module in model.modules():
        forward = _forward_of(module)
        if forward is not None:
            module.forward = MethodType(forward, module)
            found[type(module).__name__] += 1
    return found


def _forward_of(module: nn.Module) -> Callable[..., Any] | None:
    from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

    if "forward" in vars(module):  # something else stands there already: accelerate's hooks, another kernel
        return None
    if is_lora_linear(module):
        return _lora_linear
    if not type(module).__module__.startswith("transformers.models."):
        return None
    own = formula(type(module).forward)
    if own == formula(LlamaRMSNorm.forward):
        return _norm
    if own == formula(LlamaMLP.forward) and _is_silu(module.act_fn):
        return _gated_mlp
    return attention_forward if is_known(module) else turning(type(module).forward)


def _lora_linear(self: Any, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    part = low_rank(self, x) if not arguments and not named else None
    if part is None:
        return type(self).forward(self, x, *arguments, **named)  # type: ignore[no-any-return]
    maps = LowRankMaps([part])
    rows_TI = x.to(product_dtype(x)).reshape(-1, x.shape[-1])
    (y_TO,) = LowRankLinears.apply(rows_TI, maps.constants, *maps.tensors)  # type: ignore[no-untyped-call]
    return y_TO.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def _gated_mlp(self: Any, x: Tensor) -> Tensor:
    parts = [part for part in (low_rank(getattr(self, name), x) for name in PARTS) if part is not None]
    if len(parts) < len(PARTS):
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    maps = LowRankMaps(parts)
    rows_TH = x.to(product_dtype(x)).reshape(-1, x.shape[-1])
    y_TH: Tensor = GatedMlp.apply(rows_TH, maps.constants, *maps.tensors)  # type: ignore[no-untyped-call]
    return y_TH.view(x.shape)


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    taken = (torch.float32, torch.bfloat16, torch.float16)
    if hidden_states.dtype not in taken or self.weight.dtype not in taken:
        return type(self).forward(self, hidden_states)  # type: ignore[no-any-return]
    rows_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
    y_TH: Tensor = RootMeanSquareNorm.apply(rows_TH, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
    return y_TH.view(hidden_states.shape)


def _is_silu(function: Any) -> bool:
    return type(function).__name__ in ("SiLU", "SiLUActivation")
