"""Modules that learn in float32 among frozen ones in 16 bits: without autocast nothing else brings the two together, and
with it on a processor nothing does for norms."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map


def read_any_precision(module: nn.Module) -> None:
    """Let a module take inputs of another precision than its weights'."""
    module.register_forward_pre_hook(_to_own, with_kwargs=True)


def keep_precisions_apart(model: Any) -> None:
    """Let the copies that peft trains whole take what the layers before them give, and those inside the backbone give
    what the layers behind them take. A head's outputs stay in its own precision.

    Args:
        model: a wrapper of peft's.
    """
    from peft.utils.other import ModulesToSaveWrapper

    inner = model.get_base_model()
    for name, module in inner.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            for copied in module.modules_to_save.values():
                read_any_precision(copied)
            if name.startswith(f"{inner.base_model_prefix}."):
                module.register_forward_hook(_to_the_models, with_kwargs=True)


def norms_in_float32(model: Any) -> None:
    """Hold the copies that peft makes of a base's norms in float32, whatever the base's precision: in bfloat16 the smallest
    step from one is 0.008. They take what the layers before them give, and give what those behind them take."""
    from peft.tuners.ln_tuning.layer import LNTuningLayer

    for module in model.modules():
        if isinstance(module, LNTuningLayer):
            for copied in module.ln_tuning_layers.float().values():
                read_any_precision(copied)
            module.register_forward_hook(_to_the_given)


def _to_the_given(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> Any:
    return output.to(arguments[0].dtype)


def _to_own(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    return _cast((arguments, named), next(module.parameters()).dtype)


def _to_the_models(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """Into the precision of what came in; an embedding, which is given whole numbers, into that of the weights it stands for."""
    given = [part for part in (*arguments, *named.values()) if isinstance(part, Tensor)]
    floating = [part for part in given if part.is_floating_point()]
    if floating:  # under autocast what comes out is what autocast makes of all such modules
        return output if torch.is_autocast_enabled(given[0].device.type) else _cast(output, floating[0].dtype)
    replaced: nn.Module = module.original_module  # type: ignore[assignment]
    return _cast(output, next(replaced.parameters()).dtype)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    def cast(value: Any) -> Any:
        return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value

    return tree_map(cast, values)
