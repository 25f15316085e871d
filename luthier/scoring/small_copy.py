"""Small copies of a kind of model, to find out on what it can do.

A copy keeps every layer type and every setting that changes the mathematics (windows, soft caps, scales, norms).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig

SEEN = 4  # positions of a window, a chunk, a step of a scale: fewer than the probe's sequences have, so that they act
STRETCHED = ("dynamic", "longrope")  # frequencies that depend on a sequence's length
# settings that name layers by their number; any other list with an entry for each layer is found by its length
LAYER_NUMBERS = ("mlp_only_layers", "moe_layers")
DENSE_FIRST = ("first_k_dense_replace", "num_dense_layers")  # so many layers have no mixture of experts
FEW = 4  # different entries of such a list, each of which a layer of the copy has; where there are more, they are sizes
PADDING = 0  # which token it is; embeddings give it no gradient


def shrink(config: PreTrainedConfig) -> PreTrainedConfig:
    """A config of the same kind with few, narrow layers: one of each layer type."""
    small = copy.deepcopy(config)
    text: Any = small.get_text_config()
    own = _own_of_layers(text)
    if own:
        text.per_layer_config = None
    heads = getattr(text, "num_attention_heads", 4)
    grouped = getattr(text, "num_key_value_heads", None)
    groups = max(1, heads // grouped) if grouped else 1
    key_heads = min(2, grouped or 2)
    new_heads = key_heads * min(2, groups) if grouped else 2
    head_width = 8
    settings: dict[str, Any] = {
        "num_attention_heads": new_heads,
        "hidden_size": new_heads * head_width,
        "head_dim": head_width,
        "intermediate_size": 32,
        "intermediate_size_mlp": 32,
        "vocab_size": 64,
        "pad_token_id": PADDING,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "num_local_experts": 4,
        "n_routed_experts": 4,
        "num_experts": 4,
        "moe_intermediate_size": 16,
        "num_experts_per_tok": 2,
        "top_k_experts": 2,
        "n_inner": 32,
        "ffn_dim": 32,
        **_of_latent_attention(text, head_width),
    }
    if grouped:
        settings["num_key_value_heads"] = key_heads
    if getattr(text, "hidden_size_per_layer_input", None):  # another embedding for each layer
        settings |= {"hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 64}
    if (getattr(text, "n_group", None) or 1) > 1:  # groups of experts
        settings |= {"n_group": 2, "topk_group": 1}
    for name in ("sliding_window", "attention_chunk_size", "floor_scale"):
        if getattr(text, name, None):
            settings[name] = SEEN
    for rope in _rotary_settings(text):
        if rope.get("original_max_position_embeddings") and rope.get("rope_type") not in STRETCHED:
            rope["original_max_position_embeddings"] = SEEN
        _shrink_rotation(text, rope, head_width)
    for name in getattr(small, "sub_configs", ()):
        _one_layer(getattr(small, name, None), text)
    kept, of_layers = _of_layers(text, own)
    for name, value in {**of_layers, **settings}.items():
        attribute = getattr(text, "attribute_map", {}).get(name, name)
        derived = isinstance(getattr(type(text), attribute, None), property)  # follows from the others
        if getattr(text, attribute, None) is not None and not derived:
            setattr(text, attribute, value)
    if own:
        wider = {"head_dim": 2 * head_width, "intermediate_size": 48, "num_key_value_heads": 1}
        text.per_layer_config = {
            new: {name: wider.get(name, value) for name, value in own[place].items()} for new, place in enumerate(kept)
        }
    return small


def _own_of_layers(text: Any) -> list[dict[str, Any]]:
    """What each layer sets otherwise than the config (Gemma 4: wider heads in some layers); empty where none does."""
    if not getattr(text, "is_heterogeneous", False):
        return []
    bare = copy.copy(text)
    bare.per_layer_config = None
    names = vars(bare)
    return [
        {name: value for name, value in vars(layer).items() if name in names and repr(value) != repr(names[name])}
        for layer in text.per_layer_config
    ]


def _of_latent_attention(text: Any, width: int) -> dict[str, int]:
    """Widths of keys and values that are made of a latent vector (DeepSeek-V2): values are as wide as keys where the model's
    are, which is what its way through attention depends on."""
    turned, plain = (getattr(text, name, None) for name in ("qk_rope_head_dim", "qk_nope_head_dim"))
    if turned is None or plain is None:
        return {}
    keys = turned + plain
    made = {"qk_rope_head_dim": width, "qk_nope_head_dim": width, "qk_head_dim": 2 * width}
    # head_dim is of the part that turns, or of all
    made |= {name: (2 if getattr(text, name, None) == keys else 1) * width for name in ("head_dim", "v_head_dim")}
    return {**made, "kv_lora_rank": 16, "q_lora_rank": 16}


def _shrink_rotation(text: Any, rope: dict[str, Any], width: int) -> None:
    """Settings of rotary positions that are made for a head's width: how much of it turns, and a factor for each pair."""
    share = rope.get("partial_rotary_factor", getattr(text, "partial_rotary_factor", None)) or 1.0
    if share < 1.0 and (int(width * share) % 2 or int(width * share) < 2):
        share = 0.5
        rope["partial_rotary_factor"] = share
        if getattr(text, "partial_rotary_factor", None) is not None:
            text.partial_rotary_factor = share
    for name in ("short_factor", "long_factor"):
        if isinstance(factors := rope.get(name), list):
            rope[name] = factors[: int(width * share) // 2]


def _one_layer(part: Any, text: Any) -> None:
    """Of a part that no text goes through, such as a tower for pictures, one layer is enough."""
    if not isinstance(part, PreTrainedConfig) or part is text:
        return
    for name in ("num_hidden_layers", "num_layers", "depth", "encoder_layers"):
        if isinstance(getattr(part, name, None), int):
            setattr(part, name, 1)


def _rotary_settings(text: Any) -> list[dict[str, Any]]:
    """The settings of rotary positions, one for all layers or one for each of their types."""
    found = getattr(text, "rope_parameters", None) or {}
    return [part for part in (found, *found.values()) if isinstance(part, dict)]


def _of_layers(text: Any, own: Sequence[dict[str, Any]]) -> tuple[list[int], dict[str, Any]]:
    """Which layers the copy has, and what is set for each: every entry of such a setting occurs.

    Args:
        own: see `_own_of_layers`.
    """
    count = getattr(text, "num_hidden_layers", 2)
    lists = {
        name: value
        for name, value in vars(text).items()
        if isinstance(value, (list, tuple)) and len(value) == count and name not in LAYER_NUMBERS
    }
    numbers = {name: value for name in LAYER_NUMBERS if (value := getattr(text, name, None)) is not None}
    dense = {name: value for name in DENSE_FIRST if isinstance(value := getattr(text, name, None), int)}
    first_shared = count - (
        getattr(text, "num_kv_shared_layers", None) or 0
    )  # from there on keys and values of layers below
    step = getattr(text, "decoder_sparse_step", None)
    if "mlp_only_layers" in numbers and step:  # two ways to say the same: one is enough
        skipped = [place for place in range(count) if (place + 1) % step]
        numbers["mlp_only_layers"] = sorted({*numbers["mlp_only_layers"], *skipped})
    told: list[Callable[[int], object]] = [
        *(lambda place, value=value: repr(value[place]) for value in lists.values() if _different(value) <= FEW),
        *(lambda place, value=value: place in value for value in numbers.values()),
        *(lambda place, value=value: place < value for value in dense.values()),
        lambda place: repr(own[place]) if own else None,
        lambda place: place < first_shared,
    ]
    seen: set[tuple[int, object]] = set()
    kept: list[int] = []
    for place in range(count):
        says = {(number, tell(place)) for number, tell in enumerate(told)}
        if not says <= seen or not kept:
            kept.append(place)
            seen |= says
    kept = kept if len(kept) > 1 else kept * 2
    made: dict[str, Any] = {"num_hidden_layers": len(kept)}
    made |= {name: [value[place] for place in kept] for name, value in lists.items()}
    made |= {name: [new for new, place in enumerate(kept) if place in value] for name, value in numbers.items()}
    made |= {name: sum(place < value for place in kept) for name, value in dense.items()}
    if first_shared < count:
        made["num_kv_shared_layers"] = sum(place >= first_shared for place in kept)
    if "mlp_only_layers" in numbers and step:
        made["decoder_sparse_step"] = 1
    return kept, made


def _different(values: Sequence[object]) -> int:
    return len(set(map(repr, values)))


def enlarge(model: nn.Module) -> None:
    """Weights of size about 0.3 instead of 0.02: logits of several units, past where a soft cap looks linear."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(0.0, 0.3)
            parameter.requires_grad_(True)
