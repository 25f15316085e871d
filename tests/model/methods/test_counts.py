"""How many parameters a method trains on the project's default model: from its config alone, no weights are needed."""

from __future__ import annotations

from transformers import LlamaConfig

from luthier.model.loading import skeleton
from luthier.model.method import Apply, count_parameters
from luthier.model.methods import lora


def smollm2_135m() -> LlamaConfig:
    """SmolLM2-135M's shape, as its config.json on the hub has it."""
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )


def test_lora_on_queries_and_values() -> None:
    # 30 layers, rank 8: q_proj 576 -> 576, v_proj 576 -> 3 heads of 64
    assert 30 * 8 * ((576 + 576) + (576 + 192)) == 460_800
    method = lora.build(lora.Options(rank=8, target_modules=["q_proj", "v_proj"]))
    count = count_parameters(method.apply(skeleton(smollm2_135m()), Apply(seed=0)))
    assert count.trainable == 460_800
    assert count.total - count.trainable == 134_515_008
