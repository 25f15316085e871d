"""Modules that learn in float32 among frozen ones in 16 bits: without autocast nothing else brings the two together."""

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


def _to_own(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
    dtype = next(module.parameters()).dtype
    return _cast((arguments, named), dtype)


def _to_the_models(module: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
    """Into the precision of what came in; an embedding, which is given whole numbers, into that of the weights it stands for."""
    given = [part for part in (*arguments, *named.values()) if isinstance(part, Tensor) and part.is_floating_point()]
    replaced: nn.Module = module.original_module  # type: ignore[assignment]
    return _cast(output, given[0].dtype if given else next(replaced.parameters()).dtype)


def _cast(values: Any, dtype: torch.dtype) -> Any:
    def cast(value: Any) -> Any:
        is_one = isinstance(value, Tensor) and value.is_floating_point()
        if not is_one or torch.is_autocast_enabled(value.device.type):  # which casts by itself
            return value
        return value.to(dtype)

    return tree_map(cast, values)
