"""Tiny models of families that name and build their layers in other ways than Llama, Qwen2 and GPT-2."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

from tests.tiny import KINDS, tiny_model

FAMILIES = ("mistral", "bloom", "falcon", "glm")
NARROW = {"vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4, "pad_token_id": 0, "eos_token_id": 2}


def family_model(kind: str) -> PreTrainedModel:
    """A random model of two narrow layers (three for the kinds of tests/tiny.py), in float32."""
    if kind in KINDS:
        return tiny_model(kind)
    grouped = {**NARROW, "num_hidden_layers": 2, "intermediate_size": 48, "num_key_value_heads": 2}
    grouped["max_position_embeddings"] = 256
    made = {
        "mistral": (transformers.MistralConfig, transformers.MistralForCausalLM, {**grouped, "sliding_window": 16}),
        "glm": (transformers.GlmConfig, transformers.GlmForCausalLM, {**grouped, "head_dim": 8}),
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
