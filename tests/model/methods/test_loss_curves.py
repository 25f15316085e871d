"""Losses of a method over ten steps, against plain peft in a plain loop on the same seed, to four digits."""

from __future__ import annotations

from typing import Any

import peft
import pytest
import torch
from peft import get_peft_model

from luthier.config.plugins import METHODS
from luthier.data.packing import pack
from luthier.model.method import Apply
from luthier.model.quiet import quiet_peft
from luthier.scoring.padded import unroll
from luthier.scoring.scorer import Scorer
from tests.scoring.test_routes import random_examples
from tests.tiny import tiny_model

SEED, STEPS, RATE = 3, 10, 1e-2
ALL = {"target_modules": "all-linear"}
IA3 = {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}
NORMS = {"target_modules": ["input_layernorm", "post_attention_layernorm", "norm"]}
MLP = {"prefix_projection": True, "encoder_hidden_size": 32}
# our settings, peft's class and its settings
PAIRS: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
    ({"name": "lora"}, "LoraConfig", {"r": 8, "lora_alpha": 16, **ALL}),
    ({"name": "lora", "use_dora": True}, "LoraConfig", {"r": 8, "lora_alpha": 16, "use_dora": True, **ALL}),
    (
        {"name": "lora", "init": "pissa"},
        "LoraConfig",
        {"r": 8, "lora_alpha": 16, "init_lora_weights": "pissa", **ALL},
    ),
    ({"name": "ia3"}, "IA3Config", IA3),
    ({"name": "vera", "rank": 16}, "VeraConfig", {"r": 16, **ALL}),
    ({"name": "oft", "block_size": 8}, "OFTConfig", {"oft_block_size": 8, **ALL}),
    ({"name": "norm_tuning"}, "LNTuningConfig", NORMS),
    ({"name": "prompt_tuning", "init": "random"}, "PromptTuningConfig", {"num_virtual_tokens": 20}),
    ({"name": "p_tuning"}, "PromptEncoderConfig", {"num_virtual_tokens": 20, "encoder_hidden_size": 32}),
    (
        {"name": "prefix_tuning", "init": "zero"},
        "PrefixTuningConfig",
        {"num_virtual_tokens": 20, "init_weights": "zero"},
    ),
    ({"name": "prefix_tuning", "init": "random"}, "PrefixTuningConfig", {"num_virtual_tokens": 20}),
    (
        {"name": "prefix_tuning", "projection": True, "init": "random"},
        "PrefixTuningConfig",
        {"num_virtual_tokens": 20, **MLP},
    ),
]


def optimizer_of(model: torch.nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=RATE)


@pytest.mark.parametrize(("choice", "class_name", "settings"), PAIRS, ids=lambda value: str(value)[:60])
def test_the_curve_is_pefts(choice: dict[str, Any], class_name: str, settings: dict[str, Any]) -> None:
    module = METHODS.load(choice["name"])
    ours = module.build(module.Options(**choice)).apply(tiny_model("llama"), Apply(seed=SEED))
    scorer, optimizer, batch = Scorer(ours).train(), optimizer_of(ours), pack(random_examples([12, 7]))
    own = []
    for _ in range(STEPS):
        loss = -scorer(batch).logp_N.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        own.append(float(loss.detach()))

    torch.manual_seed(SEED)
    with quiet_peft():
        config = getattr(peft, class_name)(task_type="CAUSAL_LM", **settings)
        theirs: Any = get_peft_model(tiny_model("llama"), config).train()
    rows = unroll(batch)
    labels_RL = torch.full_like(rows.input_ids_RL, -100)
    labels_RL[rows.row_N, rows.column_N + 1] = batch.targets_N
    optimizer, expected = optimizer_of(theirs), []
    for _ in range(STEPS):
        loss = theirs(input_ids=rows.input_ids_RL, attention_mask=rows.attention_mask_RL, labels=labels_RL).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        expected.append(float(loss.detach()))
    assert own == pytest.approx(expected, rel=1e-4)
    assert own[-1] < own[0]
