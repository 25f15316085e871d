"""The last layer only where its output is read.

There the keys and values of every token that is computed are needed, but queries, and what follows attention, are functions of each token alone:
tokens that nobody reads (a prompt's, all but its last) may leave them out.

Shapes: T tokens, U tokens that are read, H hidden width.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

from torch import Tensor, nn

from luthier.scoring.fused.attention_block import attend, computes_here
from luthier.scoring.fused.formulas import formula


def narrow(backbone: Any) -> bool:
    """Let the backbone's last layer give hidden states of the tokens that are read only; whether it can.

    The layer must be Llama's (its text tells), since it is computed in two parts here; its attention is narrowed too where
    `attend` knows it. A call whose layout has no `last` gives all tokens' as before.
    """
    from transformers.models.llama.modeling_llama import LlamaDecoderLayer

    layers = getattr(backbone, "layers", None)
    if not isinstance(layers, nn.ModuleList) or not len(layers):
        return False
    last = layers[-1]
    if "forward" in vars(last) or formula(type(last).forward) != formula(LlamaDecoderLayer.forward):
        return False
    last.forward = MethodType(_last_layer, last)
    return True


def is_narrow(backbone: Any) -> bool:
    """Whether `narrow` has taken effect."""
    layers = getattr(backbone, "layers", None)
    last = layers[-1] if isinstance(layers, nn.ModuleList) and len(layers) else None
    return getattr(vars(last).get("forward"), "__func__", None) is _last_layer if last is not None else False


def _last_layer(self: Any, hidden_states: Tensor, *arguments: Any, **named: Any) -> Tensor:
    """[1, U, H] of [1, T, H]."""
    last = getattr(named.get("segments"), "last", None)
    if last is None or arguments:
        result: Tensor = type(self).forward(self, hidden_states, *arguments, **named)
        return result
    normed = self.input_layernorm(hidden_states)
    attended = None
    if computes_here(self.self_attn):
        attended = attend(self.self_attn, normed, **{**named, "segments": last})
    if attended is None:
        attended = self.self_attn(hidden_states=normed, **named)[0].index_select(1, last.rows_U)
    residual = hidden_states.index_select(1, last.rows_U) + attended
    narrowed: Tensor = residual + self.mlp(self.post_attention_layernorm(residual))
    return narrowed
