"""Rotary positions that stretch with the length of a sequence, without a memory of the sequences before.

transformers keeps the frequencies of the longest sequence seen until a short one comes. A step would depend on the steps
before it, and a resumed run would not end with the same bits; here every forward pass starts anew.
"""

from __future__ import annotations

from typing import Any

from torch import nn


def forget_lengths(model: nn.Module) -> None:
    """Let every rotary embedding of the dynamic kind begin each forward pass with the frequencies of short sequences."""
    for module in model.modules():
        kinds = getattr(module, "rope_type", None)
        by_prefix = (
            {"": kinds} if isinstance(kinds, str) else {f"{name}_": kind for name, kind in (kinds or {}).items()}
        )
        prefixes = [prefix for prefix, kind in by_prefix.items() if "dynamic" in str(kind)]
        if prefixes:
            module.register_forward_pre_hook(_Reset(prefixes))


class _Reset:
    def __init__(self, prefixes: list[str]) -> None:
        self.prefixes = prefixes

    def __call__(self, module: Any, arguments: tuple[Any, ...]) -> None:
        for prefix in self.prefixes:
            first = getattr(module, f"{prefix}original_inv_freq")
            own = getattr(module, f"{prefix}inv_freq")
            module.register_buffer(f"{prefix}inv_freq", first.to(own.device), persistent=False)
            setattr(module, f"{prefix}max_seq_len_cached", module.original_max_seq_len)
