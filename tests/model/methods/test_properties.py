"""The property that defines each method, and its bad input."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model

from luthier.foundation.errors import ModelError
from luthier.model.method import Apply, count_parameters
from luthier.model.methods import freeze, full, lora
from tests.tiny import tiny_model

HOW = Apply(seed=3)


def trained(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(("layers", "expected"), [(1, {2}), (2, {1, 2}), (-1, {0}), (-2, {0, 1}), (3, {0, 1, 2})])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_freeze_trains_the_last_or_first_layers(kind: str, layers: int, expected: set[int]) -> None:
    model = freeze.build(freeze.Options(trainable_layers=layers)).apply(tiny_model(kind), HOW)
    prefix = "model.layers" if kind == "llama" else "transformer.h"
    assert {int(name.removeprefix(f"{prefix}.").split(".")[0]) for name in trained(model)} == expected
    for index in expected:
        assert all(p.requires_grad for n, p in model.named_parameters() if n.startswith(f"{prefix}.{index}."))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("lm_head", {"lm_head.weight"}),
        ("model.norm", {"model.norm.weight"}),
        ("model.layers.1.mlp", {f"model.layers.1.mlp.{part}_proj.weight" for part in ("gate", "up", "down")}),
        ("k_proj", {f"model.layers.{i}.self_attn.k_proj.weight" for i in range(3)}),
        ("model.layers.*.input_layernorm", {f"model.layers.{i}.input_layernorm.weight" for i in range(3)}),
    ],
)
def test_freeze_trains_named_modules(name: str, expected: set[str]) -> None:
    options = freeze.Options(trainable_layers=0, trainable_modules=[name])
    assert trained(freeze.build(options).apply(tiny_model("llama"), HOW)) == expected


def test_freeze_names_what_exists() -> None:
    with pytest.raises(ModelError) as caught:
        freeze.build(freeze.Options(trainable_modules=["self_atn"])).apply(tiny_model("llama"), HOW)
    assert "Did you mean self_attn" in str(caught.value)
    assert "q_proj" in str(caught.value)
    with pytest.raises(ModelError, match="has 3 layers"):
        freeze.build(freeze.Options(trainable_layers=4)).apply(tiny_model("llama"), HOW)
    with pytest.raises(ModelError, match="nothing would learn"):
        freeze.build(freeze.Options(trainable_layers=0)).apply(tiny_model("llama"), HOW)


def test_full_trains_everything_in_float32() -> None:
    model = full.build(full.Options()).apply(tiny_model("llama").to(torch.bfloat16), HOW)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    pure = full.build(full.Options()).apply(tiny_model("llama"), Apply(seed=3, pure_bf16=True))
    assert {p.dtype for p in pure.parameters()} == {torch.bfloat16}


def test_frozen_weights_keep_their_16_bits() -> None:
    model = lora.build(lora.Options()).apply(tiny_model("llama").to(torch.bfloat16), HOW)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in model.parameters() if not p.requires_grad} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("options", "peft"),
    [
        ({}, {}),
        ({"use_rslora": True, "rank": 4}, {"use_rslora": True, "r": 4}),
        ({"use_dora": True}, {"use_dora": True}),
        ({"init": "gaussian"}, {"init_lora_weights": "gaussian"}),
        ({"init": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
        (
            {"bias": "all", "target_modules": ["q_proj", "v_proj"]},
            {"bias": "all", "target_modules": ["q_proj", "v_proj"]},
        ),
        ({"modules_to_save": ["lm_head"]}, {"modules_to_save": ["lm_head"], "ensure_weight_tying": True}),
        (
            {"target_modules": r".*layers\.1\..*_proj", "dropout": 0.1},
            {"target_modules": r".*layers\.1\..*_proj", "lora_dropout": 0.1},
        ),
    ],
)
def test_lora_is_pefts_own(options: dict, peft: dict) -> None:
    """Same modules, same settings, and with the same seed the same bits as peft makes them."""
    ours = lora.build(lora.Options(**options)).apply(tiny_model("qwen2"), HOW)
    torch.manual_seed(3)
    defaults = {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
    theirs = get_peft_model(tiny_model("qwen2"), LoraConfig(**{**defaults, **peft}))
    assert trained(ours) == trained(theirs)
    own, reference = ours.state_dict(), theirs.state_dict()
    assert own.keys() == reference.keys()
    assert all(torch.equal(own[name], value) for name, value in reference.items())


def test_lora_finds_conv1d_of_gpt2() -> None:
    model = lora.build(lora.Options(rank=2)).apply(tiny_model("gpt2"), HOW)
    # c_attn 32 -> 96, c_proj 32 -> 32, c_fc 32 -> 128, c_proj 128 -> 32, in three layers
    assert count_parameters(model).trainable == 3 * 2 * ((32 + 96) + (32 + 32) + (32 + 128) + (128 + 32))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"target_modules": ["q_proj", "qproj"]}, "'qproj'"),
        ({"target_modules": ".*nothing.*"}, "expression '.*nothing.*'"),
        ({"target_modules": "(["}, "is broken"),
        ({"modules_to_save": ["head"]}, "modules_to_save names 'head'"),
    ],
)
def test_names_that_match_nothing(options: dict, said: str) -> None:
    with pytest.raises(ModelError) as caught:
        lora.build(lora.Options(**options)).apply(tiny_model("llama"), HOW)
    assert said in str(caught.value)
    if "broken" not in said:
        assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(caught.value)
