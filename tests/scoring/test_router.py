"""A mixture of experts' load-balancing loss: that of the family's own forward pass, on both routes, and in a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import luthier
from luthier.data.examples import TokenizedExample, TokenSequence
from luthier.data.packing import pack
from luthier.data.records import Origin
from luthier.foundation.errors import ModelError
from luthier.scoring.scorer import Scorer
from tests.tiny import config_for, tiny_model, tiny_tokenizer

SIZES = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "num_experts_per_tok": 2, "pad_token_id": 0,
    "bos_token_id": None, "eos_token_id": 2,
}  # fmt: skip


def mixtral(**settings: Any) -> Any:
    config = transformers.MixtralConfig(**{**SIZES, "num_local_experts": 4, "sliding_window": None, **settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.MixtralForCausalLM(config)


def qwen3_moe(**settings: Any) -> Any:
    """Its last layer computes only the rows that are read, where nothing else is asked of it."""
    sizes = {**SIZES, "head_dim": 8, "moe_intermediate_size": 16, "num_experts": 4, "decoder_sparse_step": 1}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return transformers.Qwen3MoeForCausalLM(transformers.Qwen3MoeConfig(**{**sizes, **settings}))


def examples(*lengths: int, untrained: int = 1) -> list[TokenizedExample]:
    chance = torch.Generator().manual_seed(1)
    found = []
    for row, length in enumerate(lengths):
        ids = tuple(torch.randint(3, 300, (length,), generator=chance).tolist())
        sequence = TokenSequence(ids, (*[0.0] * untrained, *[1.0] * (length - untrained)))
        found.append(TokenizedExample((sequence,), Origin("rows", row), length, {}))
    return found


@pytest.mark.parametrize("route", ["segmented", "padded"])
@pytest.mark.parametrize("family", [mixtral, qwen3_moe])
def test_it_is_the_familys_own(family: Any, route: Any) -> None:
    model = family(output_router_logits=True, router_aux_loss_coef=0.3)
    rows = examples(7, 12, 5, untrained=4)
    batch = pack(rows)
    ids, mask = torch.zeros(3, 12, dtype=torch.long), torch.zeros(3, 12, dtype=torch.long)
    for row, example in enumerate(rows):
        length = len(example.sequences[0].input_ids)
        ids[row, :length], mask[row, :length] = torch.tensor(example.sequences[0].input_ids), 1
    labels = torch.where(mask.bool(), ids, -100)
    labels[:, :4] = -100
    theirs = model(input_ids=ids, attention_mask=mask, labels=labels)
    assert theirs.aux_loss.item() > 0.5
    scores = Scorer(model, route).train()(batch)
    ours = -scores.logp_N.sum() / len(batch.targets_N) + scores.auxiliary_loss
    assert scores.auxiliary_loss is not None
    torch.testing.assert_close(scores.auxiliary_loss, 0.3 * theirs.aux_loss, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours, theirs.loss, rtol=1e-5, atol=0)
    reference = torch.autograd.grad(theirs.loss, model.model.layers[0].mlp.gate.weight)
    gradient = torch.autograd.grad(ours, model.model.layers[0].mlp.gate.weight)
    torch.testing.assert_close(gradient, reference, rtol=1e-4, atol=1e-7)


def test_a_setting_overrides_the_models_config() -> None:
    batch = pack(examples(6, 4))
    off = Scorer(mixtral(output_router_logits=True), router_aux_loss_coef=0.0).train()
    assert off(batch).auxiliary_loss is None
    on = Scorer(mixtral(), router_aux_loss_coef=0.5).train()
    twice = Scorer(mixtral(), router_aux_loss_coef=1.0).train()
    torch.testing.assert_close(2 * on(batch).auxiliary_loss, twice(batch).auxiliary_loss)
    assert on.eval()(batch).auxiliary_loss is None


def test_a_model_without_experts_refuses_the_setting() -> None:
    assert not Scorer(tiny_model("llama")).router_loss.possible
    with pytest.raises(ModelError, match="no load-balancing loss for LlamaForCausalLM"):
        Scorer(tiny_model("llama"), router_aux_loss_coef=0.1)


def test_a_run_adds_it_and_says_whether_it_is_on(
    rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = tiny_tokenizer()
    mixtral(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    losses = {}
    for coefficient in (None, 0.0, 0.5):
        config = config_for(tmp_path / "model", rows, tmp_path / f"run{coefficient}", max_steps=1)
        config["method"] = "full"
        config["model"] = {"name": config["model"], "router_aux_loss_coef": coefficient}
        luthier.train(config)
        said = capsys.readouterr().err
        assert ("its load-balancing loss is off, as its config says" in said) == (coefficient is None)
        line = (tmp_path / f"run{coefficient}" / "metrics.jsonl").read_text().splitlines()[0]
        losses[coefficient] = json.loads(line)["loss"]
    assert losses[None] == losses[0.0]
    assert 0.4 < losses[0.5] - losses[0.0] < 1.5  # about coefficient x top_k of balanced experts
