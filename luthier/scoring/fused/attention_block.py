"""The attention of Llama's kin with its queries, keys and values made by one function.

The three maps read the same input, so their factors A do it at once, and their gradients of it come together without
additions between.

Shapes: T tokens, N heads (H of queries, K of keys and values), D head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from luthier.scoring import attention
from luthier.scoring.fused.formulas import formula
from luthier.scoring.fused.low_rank import LowRank, LowRankLinears, LowRankMaps
from luthier.scoring.fused.rotary import Rotation, turning

PARTS = ("q_proj", "k_proj", "v_proj")


@functools.cache
def _windows() -> dict[str, Callable[[Any], int | None]]:
    """The forwards that are known here, and where each finds the length of its window."""
    from transformers.models.llama.modeling_llama import LlamaAttention
    from transformers.models.mistral.modeling_mistral import MistralAttention
    from transformers.models.qwen2.modeling_qwen2 import Qwen2Attention
    from transformers.models.qwen3.modeling_qwen3 import Qwen3Attention
    from transformers.models.smollm3.modeling_smollm3 import SmolLM3Attention

    def of_module(module: Any) -> int | None:
        window: int | None = module.sliding_window
        return window

    return {
        formula(LlamaAttention.forward): lambda module: None,
        formula(MistralAttention.forward): lambda module: getattr(module.config, "sliding_window", None),
        formula(Qwen2Attention.forward): of_module,
        formula(Qwen3Attention.forward): of_module,
        formula(SmolLM3Attention.forward): of_module,
    }


def is_known(module: nn.Module) -> bool:
    """Whether a module's forward is one of those computed here, with Llama's rotation."""
    return formula(type(module).forward) in _windows() and turning(type(module).forward) is not None


def attention_forward(
    self: Any, maps_of: Callable[[Any, Tensor], LowRank | None], hidden_states: Tensor, named: dict[str, Any]
) -> tuple[Tensor, None] | None:
    """A known module's forward over a packed row; None where it is called for anything else.

    Args:
        maps_of: a projection as a map, or None where it computes something else at this moment.
        named: the arguments of the call, as the module's forward has them.
    """
    embeddings, mask, cache = (
        named.pop(name, None) for name in ("position_embeddings", "attention_mask", "past_key_values")
    )
    if self.config._attn_implementation != attention.NAME or cache is not None or embeddings is None:
        return None
    if any(part.dtype != hidden_states.dtype or part.shape[-1] != self.head_dim for part in embeddings):
        return None
    maps = [maps_of(getattr(self, name), hidden_states) for name in PARTS]
    if hidden_states.shape[0] != 1 or any(part is None for part in maps):
        return None
    together = LowRankMaps([part for part in maps if part is not None])
    found = LowRankLinears.apply(hidden_states[0], together.constants, *together.tensors)  # type: ignore[no-untyped-call]
    query_THD, key_TKD, value_TKD = (part.view(part.shape[0], -1, self.head_dim) for part in found)
    if hasattr(self, "q_norm"):
        query_THD, key_TKD = self.q_norm(query_THD), self.k_norm(key_TKD)
    query, key, value = (part[None].transpose(1, 2) for part in (query_THD, key_TKD, value_TKD))
    if getattr(self, "use_rope", True):
        query, key = (Rotation.apply(part, *embeddings) for part in (query, key))  # type: ignore[no-untyped-call]
    output, _ = attention.segmented_attention(
        self,
        query,
        key,
        value,
        mask,
        dropout=self.attention_dropout if self.training else 0.0,
        scaling=self.scaling,
        sliding_window=_windows()[formula(type(self).forward)](self),
        **named,
    )
    return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), None
