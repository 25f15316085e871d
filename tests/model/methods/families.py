"""Tiny models of families that name and build their layers in other ways than Llama, Qwen2 and GPT-2."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.models.llama.modeling_llama import LlamaAttention

from tests.tiny import KINDS, tiny_model

FAMILIES = ("mistral", "bloom", "falcon", "glm", "baichuan", "mixtral")
NARROW = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": 2}


class PackedAttention(LlamaAttention):  # type: ignore[misc]
    """Llama's attention with one projection W_pack for queries, keys and values, as Baichuan's own code has it."""

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.W_pack = nn.Linear(config.hidden_size, 3 * config.hidden_size, bias=False)
        # a part of its output each: Llama's forward asks for them by these names, one after the other
        self.q_proj, self.k_proj, self.v_proj = (Part(index) for index in range(3))

    def forward(self, hidden_states: Tensor, *arguments: Any, **named: Any) -> Any:
        return super().forward(self.W_pack(hidden_states), *arguments, **named)


class Part(nn.Module):
    """One third of what W_pack gives."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.index = index

    def forward(self, packed: Tensor) -> Tensor:
        return packed.chunk(3, dim=-1)[self.index]


class PackedLlama(transformers.LlamaForCausalLM):  # type: ignore[misc]
    """A Llama with fused projections, of a class that is not transformers' own."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        for index, layer in enumerate(self.model.layers):
            layer.self_attn = PackedAttention(config, index)
        self.post_init()


def family_model(kind: str) -> PreTrainedModel:
    """A random model of two narrow layers (three for the kinds of tests/tiny.py), in float32."""
    if kind in KINDS:
        return tiny_model(kind)
    grouped = {**NARROW, "num_hidden_layers": 2, "intermediate_size": 48, "num_key_value_heads": 2}
    grouped["max_position_embeddings"] = 256
    made = {
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {**grouped, "sliding_window": 16}),
        "mixtral": (
            transformers.MixtralConfig,
            transformers.MixtralForCausalLM,
            {**grouped, "num_local_experts": 4, "num_experts_per_tok": 2},
        ),
        # the first layer is dense, the second has a shared expert
        "deepseek": (
            transformers.DeepseekV3Config,
            transformers.DeepseekV3ForCausalLM,
            {
                **grouped,
                "num_key_value_heads": 4,
                "moe_intermediate_size": 24,
                "first_k_dense_replace": 1,
                "n_routed_experts": 4,
                "n_shared_experts": 1,
                "num_experts_per_tok": 2,
                "n_group": 1,
                "topk_group": 1,
                "q_lora_rank": None,
                "kv_lora_rank": 16,
                "qk_rope_head_dim": 4,
                "qk_nope_head_dim": 4,
                "v_head_dim": 8,
            },
        ),
        "qwen2_moe": (
            transformers.Qwen2MoeConfig,
            transformers.Qwen2MoeForCausalLM,
            {
                **grouped,
                "moe_intermediate_size": 24,
                "shared_expert_intermediate_size": 24,
                "num_experts": 4,
                "num_experts_per_tok": 2,
            },
        ),
        "glm": (transformers.GlmConfig, transformers.GlmForCausalLM, {**grouped, "head_dim": 8}),
        "baichuan": (transformers.LlamaConfig, PackedLlama, {**grouped, "num_key_value_heads": 4}),
        "bloom": (
            transformers.BloomConfig,
            transformers.BloomForCausalLM,
            {"vocab_size": 300, "hidden_size": 32, "n_layer": 2, "n_head": 4, "pad_token_id": 0, "eos_token_id": 2},
        ),
        "falcon": (
            transformers.FalconConfig,
            transformers.FalconForCausalLM,
            {**NARROW, "num_hidden_layers": 2, "new_decoder_architecture": True, "num_kv_heads": 2, "bias": True},
        ),
    }
    config_class, model_class, settings = made[kind]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config_class(**settings))
        for parameter in model.parameters():
            if parameter.ndim >= 2:
                parameter.data.normal_(0.0, 0.15)
    return model.eval()
