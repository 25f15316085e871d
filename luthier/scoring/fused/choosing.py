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

from luthier.scoring.fused.attention_block import attention_forward, is_known
from luthier.scoring.fused.formulas import formula
from luthier.scoring.fused.gated_mlp import PARTS, GatedMlp
from luthier.scoring.fused.low_rank import LowRank, LowRankLinears, LowRankMaps, frozen_weight, has_hooks
from luthier.scoring.fused.narrowing import narrow
from luthier.scoring.fused.norm import RootMeanSquareNorm
from luthier.scoring.fused.rotary import turning

_LORA_LAYERS = (("peft.tuners.lora.layer", "Linear"), ("peft.tuners.lora.bnb", "Linear4bit"))


def fuse(model: PreTrainedModel) -> Counter[str]:
    """Let the modules of a transformers model that can compute fused do so, and its last layer where it is read only.

    Returns:
        how many modules of each class were found.
    """
    found: Counter[str] = Counter()
    if narrow(model.get_decoder()):
        found[type(model.get_decoder().layers[-1]).__name__] += 1
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
    if _is_lora_linear(module):
        return _lora_linear
    if not type(module).__module__.startswith("transformers.models."):
        return None
    own = formula(type(module).forward)
    if own == formula(LlamaRMSNorm.forward):
        return _norm
    if own == formula(LlamaMLP.forward) and _is_silu(module.act_fn):
        return _gated_mlp
    return _attention if is_known(module) else turning(type(module).forward)


def _lora_linear(self: Any, x: Tensor, *arguments: Any, **named: Any) -> Tensor:
    part = low_rank(self, x) if not arguments and not named else None
    if part is None:
        return type(self).forward(self, x, *arguments, **named)  # type: ignore[no-any-return]
    maps = LowRankMaps([part])
    (y_TO,) = LowRankLinears.apply(x.reshape(-1, x.shape[-1]), maps.constants, *maps.tensors)  # type: ignore[no-untyped-call]
    return y_TO.view(*x.shape[:-1], -1)  # type: ignore[no-any-return]


def _gated_mlp(self: Any, x: Tensor) -> Tensor:
    parts = [part for part in (low_rank(getattr(self, name), x) for name in PARTS) if part is not None]
    if len(parts) < len(PARTS):
        return type(self).forward(self, x)  # type: ignore[no-any-return]
    maps = LowRankMaps(parts)
    y_TH: Tensor = GatedMlp.apply(x.reshape(-1, x.shape[-1]), maps.constants, *maps.tensors)  # type: ignore[no-untyped-call]
    return y_TH.view(x.shape)


def _attention(self: Any, hidden_states: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
    found = None if arguments else attention_forward(self, low_rank, hidden_states, dict(named))
    if found is None:
        otherwise = turning(type(self).forward)
        assert otherwise is not None  # else the module were not known
        return otherwise(self, hidden_states, *arguments, **named)  # type: ignore[no-any-return]
    return found


def _norm(self: Any, hidden_states: Tensor) -> Tensor:
    if hidden_states.dtype != torch.float32 or self.weight.dtype != torch.float32 or _is_autocast(hidden_states):
        return type(self).forward(self, hidden_states)  # type: ignore[no-any-return]
    rows_TH = hidden_states.reshape(-1, hidden_states.shape[-1])
    y_TH: Tensor = RootMeanSquareNorm.apply(rows_TH, self.weight, self.variance_epsilon)  # type: ignore[no-untyped-call]
    return y_TH.view(hidden_states.shape)


def low_rank(module: nn.Module, x: Tensor) -> LowRank | None:
    """A module as the map that the fused functions compute, or None where it is anything else at this moment.

    A frozen `nn.Linear` or one in 4 bits, or peft's LoRA layer over one: one active adapter, not disabled, not merged, no
    variant (DoRA and others), no bias of its own, dropout that does nothing, no hooks, one precision.
    """
    if _is_autocast(x):
        return None
    layer: Any = module
    weight = frozen_weight(layer, x.dtype)
    if weight is not None:
        return LowRank(weight, layer.bias, None, None, 0.0)
    if not _is_lora_linear(layer) or layer.disable_adapters or layer.merged or has_hooks(layer):
        return None
    base = layer.base_layer
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    weight = frozen_weight(base, x.dtype)
    if len(active) != 1 or weight is None:
        return None
    name = active[0]
    down, up, dropout = layer.lora_A[name], layer.lora_B[name], layer.lora_dropout[name]
    if name in layer.lora_variant or up.bias is not None or type(up) is not nn.Linear or type(down) is not nn.Linear:
        return None
    if _drops(dropout) or any(has_hooks(part) for part in (down, up, dropout)):
        return None
    if not x.dtype == down.weight.dtype == up.weight.dtype:
        return None
    return LowRank(weight, base.bias, down.weight, up.weight, layer.scaling[name])


def _drops(dropout: nn.Module) -> bool:
    return not isinstance(dropout, nn.Identity) and dropout.training and getattr(dropout, "p", 1.0) > 0


def _is_lora_linear(module: nn.Module) -> bool:
    return (type(module).__module__, type(module).__name__) in _LORA_LAYERS


def _is_autocast(x: Tensor) -> bool:
    return torch.is_autocast_enabled(x.device.type)


def _is_silu(function: Any) -> bool:
    return type(function).__name__ in ("SiLU", "SiLUActivation")
