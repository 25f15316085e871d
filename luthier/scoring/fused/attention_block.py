"""The attention of Llama's kin with its queries, keys and values made by one function and turned by another.

The three maps read the same input, so their factors A do it at once and their gradients of it come together without
additions between; a rotation (Su et al. 2021, https://arxiv.org/abs/2104.09864, equation 34) takes two and a half passes
forward and backward where module by module it takes five.

Shapes: T tokens, N heads (H of queries, K of keys and values), D head width.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from luthier.scoring import attention
from luthier.scoring.fused.formulas import formula
from luthier.scoring.fused.low_rank import LowRank, LowRankLinears, LowRankMaps

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
    from transformers.models.llama import modeling_llama as llama

    source: Any = sys.modules[type(module).__module__]
    return formula(type(module).forward) in _windows() and all(
        name in vars(source) and formula(getattr(source, name)) == formula(getattr(llama, name))
        for name in ("apply_rotary_pos_emb", "rotate_half")
    )


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
    maps = [maps_of(getattr(self, name), hidden_states) for name in PARTS]
    if hidden_states.shape[0] != 1 or any(part is None for part in maps):
        return None
    together = LowRankMaps([part for part in maps if part is not None])
    found = LowRankLinears.apply(hidden_states[0], together.constants, *together.tensors)  # type: ignore[no-untyped-call]
    query_THD, key_TKD, value_TKD = (part.view(part.shape[0], -1, self.head_dim) for part in found)
    if hasattr(self, "q_norm"):
        query_THD, key_TKD = self.q_norm(query_THD), self.k_norm(key_TKD)
    if getattr(self, "use_rope", True):
        cos_TD, sin_TD = (part[0] for part in embeddings)
        query_THD, key_TKD = (Rotation.apply(part, cos_TD, sin_TD) for part in (query_THD, key_TKD))  # type: ignore[no-untyped-call]
    output, _ = attention.segmented_attention(
        self,
        query_THD[None].transpose(1, 2),
        key_TKD[None].transpose(1, 2),
        value_TKD[None].transpose(1, 2),
        mask,
        dropout=self.attention_dropout if self.training else 0.0,
        scaling=self.scaling,
        sliding_window=_windows()[formula(type(self).forward)](self),
        **named,
    )
    return self.o_proj(output.reshape(*hidden_states.shape[:-1], -1)), None


class Rotation(torch.autograd.Function):
    """Positions turned into queries or keys [T, N, D]:  x cos + (-x2, x1) sin,  x1 and x2 the halves of a head."""

    @staticmethod
    def forward(ctx: Any, x_TND: Tensor, cos_TD: Tensor, sin_TD: Tensor) -> Tensor:
        ctx.save_for_backward(cos_TD, sin_TD)
        y_TND = x_TND * cos_TD[:, None]
        (x1, x2), (y1, y2), (sin1, sin2) = (part.chunk(2, dim=-1) for part in (x_TND, y_TND, sin_TD[:, None]))
        y1.addcmul_(x2, sin1, value=-1)
        y2.addcmul_(x1, sin2)
        return y_TND

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient_TND,) = gradients
        cos_TD, sin_TD = ctx.saved_tensors
        into_TND = gradient_TND * cos_TD[:, None]
        (g1, g2), (into1, into2), (sin1, sin2) = (
            part.chunk(2, dim=-1) for part in (gradient_TND, into_TND, sin_TD[:, None])
        )
        into1.addcmul_(g2, sin2)
        into2.addcmul_(g1, sin1, value=-1)
        return into_TND, None, None
