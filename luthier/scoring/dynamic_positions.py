"""Rotary positions that stretch with the length of a sequence, without a memory of the sequences before.

transformers keeps the frequencies of the longest sequence seen until a short one comes. A step would depend on the steps
before it, and a resumed run would not end with the same bits; here every forward pass starts anew. Within one pass the
longest sequence still decides for all: what a sequence gives depends on those beside it, where one is too long.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn


def forget_lengths(model: nn.Module) -> None:
    """Let every rotary embedding of the dynamic kind begin each forward pass with the frequencies of short sequences."""
    for module in model.modules():
        prefixes = [f"{name}_" if name else "" for name, kind in _kinds(module).items() if "dynamic" in kind]
        if prefixes:
            module.register_forward_pre_hook(_Reset(prefixes))


def independent_length(model: nn.Module) -> float:
    """Tokens up to which a sequence leaves the positions of others in its batch as they are; infinite for most models."""
    lengths: list[float] = [math.inf]
    for module in model.modules():
        for name, kind in _kinds(module).items():
            part: Any = module
            if "dynamic" in kind:
                lengths.append(part.original_max_seq_len)
            elif kind == "longrope":
                settings = part.config.rope_parameters
                lengths.append((settings[name] if name else settings)["original_max_position_embeddings"])
    return min(lengths)


def _kinds(module: nn.Module) -> dict[str, str]:
    """The kinds of a rotary embedding's frequencies, by the type of layer that they are for ("": all)."""
    kinds = getattr(module, "rope_type", None)
    by_name = {"": kinds} if isinstance(kinds, str) else kinds or {}
    return {name: str(kind) for name, kind in by_name.items()}


class _Reset:
    def __init__(self, prefixes: list[str]) -> None:
        self.prefixes = prefixes

    def __call__(self, module: Any, arguments: tuple[Any, ...]) -> None:
        for prefix in self.prefixes:
            first = getattr(module, f"{prefix}original_inv_freq")
            own = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", first.to(own.device), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
