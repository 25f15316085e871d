"""Whether chance takes part in training, however a family names its rates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, OFTConfig, get_peft_model
from torch import nn

from luthier.scoring.dropout import drops_out
from tests.tiny import tiny_model

SMALL = {
    "vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 2, "ffn_dim": 24, "word_embed_proj_dim": 16, "attention_heads": 2, "num_layers": 1,
    "d_model": 16, "num_local_experts": 2,
}  # fmt: skip
STILL = {
    "dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0, "residual_dropout": 0.0, "hidden_dropout": 0.0,
    "embedding_dropout": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "layerdrop": 0.0, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0, "input_jitter_noise": 0.0, "router_jitter_noise": 0.0,
}  # fmt: skip


def made(family: str, **settings: Any) -> nn.Module:
    config = getattr(transformers, f"{family}Config")(**{**SMALL, **STILL, **settings})
    with torch.device("meta"):
        return transformers.AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize(
    ("family", "rate"),
    [
        ("Starcoder2", "residual_dropout"),
        ("Starcoder2", "embedding_dropout"),
        ("Falcon", "hidden_dropout"),
        ("Phi", "resid_pdrop"),
        ("OPT", "layerdrop"),
        ("OPT", "activation_dropout"),
        ("XGLM", "layerdrop"),
        ("BioGpt", "layerdrop"),
        ("Mixtral", "router_jitter_noise"),
        ("Llama", "attention_dropout"),
    ],
)
def test_every_rate_of_a_family_counts(family: str, rate: str) -> None:
    assert not drops_out(made(family))
    assert drops_out(made(family, **{rate: 0.1}))


def test_a_router_that_draws_its_experts_counts_without_any_jitter() -> None:
    assert drops_out(made("Phimoe"))


def test_a_rate_of_a_head_that_is_not_there_does_not() -> None:
    """GPT-NeoX and GPT-2 have such rates in every config."""
    assert not drops_out(made("GPTNeoX", classifier_dropout=0.1))
    assert not drops_out(tiny_model("gpt2", summary_first_dropout=0.1))


def test_a_methods_own_counts() -> None:
    def tuned(config: Any) -> nn.Module:
        return get_peft_model(tiny_model("llama"), config)

    assert not drops_out(tuned(LoraConfig(r=2, target_modules=["q_proj"])))
    assert drops_out(tuned(LoraConfig(r=2, target_modules=["q_proj"], lora_dropout=0.1)))
    assert drops_out(tuned(OFTConfig(oft_block_size=4, target_modules=["q_proj"], module_dropout=0.1)))
