"""The attention of Llama's kin with its queries, keys and values made by one function.

The three maps read the same input, so their factors A do it at once, and their gradients of it come together without
additions between. Where only some rows attend (the last layer's that are read), queries are made of those alone.

Shapes: T tokens, U rows that attend, N heads (of queries, or of keys and values), H hidden width, D head width.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from luthier.scoring import attention
from luthier.scoring.fused.formulas import formula
from luthier.scoring.fused.low_rank import LowRankLinears, LowRankMaps, has_hooks, low_rank, product_dtype
from luthier.scoring.fused.rotary import rotation, turning

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
    """Whether a module's forward is one of those computed here."""
    return formula(type(module).forward) in _windows() and rotation(type(module).forward) is not None


def computes_here(module: nn.Module) -> bool:
    """Whether a known module computes by `attention_forward`, and nothing listens to its calls."""
    return getattr(vars(module).get("forward"), "__func__", None) is attention_forward and not has_hooks(module)


def attention_forward(self: Any, hidden_states: Tensor, *arguments: Any, **named: Any) -> tuple[Tensor, Tensor | None]:
    """A known module's forward; called for anything else than a packed row, its family's own."""
    attended = None if arguments else attend(self, hidden_states, **named)
    if attended is not None:
        return attended, None
    own = turning(type(self).forward) or type(self).forward
    return own(self, hidden_states, *arguments, **named)  # type: ignore[no-any-return]


def attend(
    module: Any,
    hidden_states: Tensor,
    position_embeddings: tuple[Tensor, Tensor] | None = None,
    attention_mask: Tensor | None = None,
    past_key_values: Any = None,
    **named: Any,
) -> Tensor | None:
    """What a known module gives for a packed row [1, T, H]: [1, U, H], of the rows that attend by the layout; None where
    this is no packed row.

    Args:
        named: `segments`, the layout, and whatever else the module hands on to its attention function.
    """
    segments: attention.Layout | None = named.get("segments")
    if module.config._attn_implementation != attention.NAME or segments is None or hidden_states.shape[0] != 1:
        return None
    if past_key_values is not None or position_embeddings is None:
        return None
    rows_U = segments.rows_U
    if rows_U is None:
        query, key, value = _heads(module, PARTS, hidden_states)
    else:
        (query,) = _heads(module, PARTS[:1], hidden_states.index_select(1, rows_U))
        key, value = _heads(module, PARTS[1:], hidden_states)
    if hasattr(module, "q_norm"):
        query, key = module.q_norm(query), module.k_norm(key)
    query, key, value = (part.transpose(1, 2) for part in (query, key, value))
    turn = rotation(type(module).forward)
    if turn is not None and getattr(module, "use_rope", True):
        if rows_U is None:
            query, key = turn(query, key, *position_embeddings)
        else:  # each beside no heads of the other
            query, _ = turn(query, query[:, :0], *(angles.index_select(1, rows_U) for angles in position_embeddings))
            _, key = turn(key[:, :0], key, *position_embeddings)
    output, _ = attention.segmented_attention(
        module,
        query,
        key,
        value,
        attention_mask,
        dropout=module.attention_dropout if module.training else 0.0,
        scaling=module.scaling,
        sliding_window=_windows()[formula(type(module).forward)](module),
        **named,
    )
    attended: Tensor = module.o_proj(output.reshape(1, output.shape[1], -1))
    return attended


def _heads(module: Any, names: Sequence[str], x: Tensor) -> list[Tensor]:
    """Projections of one input [1, T, H], each [1, T, N, D]: by one function where all are maps at this moment."""
    parts = [getattr(module, name) for name in names]
    maps = [found for part in parts if (found := low_rank(part, x)) is not None]
    if len(maps) == len(parts):
        together = LowRankMaps(maps)
        projected = LowRankLinears.apply(x[0].to(product_dtype(x)), together.constants, *together.tensors)  # type: ignore[no-untyped-call]
    else:
        projected = [part(x) for part in parts]
    return [part.view(*x.shape[:-1], -1, module.head_dim) for part in projected]
