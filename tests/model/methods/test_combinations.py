"""Methods that join a prefix with bottlenecks: what defines them, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.data.packing import pack
from luthier.foundation.errors import ModelError
from luthier.model.bottleneck import Bottleneck, bottlenecks
from luthier.model.method import Apply, count_parameters
from luthier.model.methods import mam, prefix_tuning, unipelt
from luthier.scoring.scorer import Scorer
from tests.model.methods.families import family_model
from tests.scoring.test_routes import random_examples
from tests.tiny import tiny_model

HOW = Apply(seed=3, base_name="base/of-it")
IDS = torch.arange(3, 40)[None]
LAYERS, WIDTH, INNER, KEY = 3, 32, 48, 16  # of the tiny Llama


def train(model: Any, steps: int = 8) -> None:
    scorer, batch = Scorer(model).train(), pack(random_examples([12, 7]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=2e-2)
    for _ in range(steps):
        (-scorer(batch).logp_N.mean()).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def test_mam_is_a_prefix_and_parallel_bottlenecks() -> None:
    model: Any = mam.build(mam.Options(num_virtual_tokens=5, reduction_factor=4)).apply(tiny_model("llama"), HOW)
    prefix = 5 * LAYERS * 2 * KEY
    beside = LAYERS * (WIDTH * 8 + 8 + 8 * WIDTH + WIDTH)
    assert count_parameters(model).trainable == prefix + beside
    assert all(made.parallel and made.scale == 4.0 and made.gate is None for made in bottlenecks(model))
    # with bottlenecks that still add nothing, it is prefix tuning with the same seed
    alone: Any = prefix_tuning.build(prefix_tuning.Options(num_virtual_tokens=5)).apply(tiny_model("llama"), HOW)
    with torch.no_grad():
        assert torch.equal(model.eval()(input_ids=IDS).logits, alone.eval()(input_ids=IDS).logits)


@pytest.mark.parametrize("module", [mam, unipelt])
def test_the_prefix_starts_where_it_is_told(module: Any) -> None:
    values = {}
    for init in ("zero", "random", "small"):
        model: Any = module.build(module.Options(prefix_init=init)).apply(tiny_model("llama"), HOW)
        values[init] = model.get_prompt(batch_size=1).layers[0].values
    assert not values["zero"].any() and values["random"].any()
    torch.testing.assert_close(values["small"], values["random"] / 10)


def test_unipelt_counts_its_three_parts_and_their_gates() -> None:
    options = unipelt.Options(num_virtual_tokens=5, reduction_factor=4, rank=2)
    model: Any = unipelt.build(options).apply(tiny_model("llama"), HOW)
    prefix = 5 * LAYERS * 2 * KEY + LAYERS
    after = LAYERS * (WIDTH * 8 + 8 + 8 * WIDTH + WIDTH + (WIDTH + 1))
    queries_values = LAYERS * (2 * (WIDTH + WIDTH) + 2 * (WIDTH + KEY) + 2 * (WIDTH + 1))
    assert count_parameters(model).trainable == prefix + after + queries_values


def test_a_gate_s_arithmetic() -> None:
    """sigmoid(w x + b) for every token, times alpha / rank, times B A x, beside the base's W x."""
    model: Any = unipelt.build(unipelt.Options(rank=2, alpha=6)).apply(tiny_model("llama"), HOW)
    projection = model.get_base_model().model.layers[0].self_attn.q_proj
    made: Bottleneck = projection.bottleneck
    assert made.gate is not None
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 5, WIDTH)
    gate = torch.sigmoid(x @ made.gate.weight.T + made.gate.bias)
    expected = x @ projection.weight.T + gate * 3.0 * (x @ made.down.weight.T @ made.up.weight.T)
    assert gate.shape == (1, 5, 1)
    assert torch.allclose(projection(x), expected, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_gates_start_at_a_half_and_learn(kind: str) -> None:
    model: Any = unipelt.build(unipelt.Options()).apply(family_model(kind), HOW)
    gates = [(name, p) for name, p in model.named_parameters() if "bottleneck.gate" in name or "gate_L" in name]
    assert all(p.requires_grad and not p.any() for _, p in gates)
    train(model)
    assert all(bool(p.any()) for _, p in gates)


def test_a_closed_gate_shuts_a_part_off() -> None:
    model: Any = unipelt.build(unipelt.Options()).apply(tiny_model("llama"), HOW)
    train(model)
    open_ones = model(input_ids=IDS).logits
    for made in bottlenecks(model):
        assert made.gate is not None
        nn.init.constant_(made.gate.bias, -1e4)
    prefix_alone = model(input_ids=IDS).logits
    assert (open_ones - prefix_alone).abs().max() > 0.1
    model.prompt_encoder["default"].gate_L.data.fill_(-1e4)  # keys and values of zero: attended to, worth nothing
    past = model.get_prompt(batch_size=1)
    assert not past.layers[0].keys.any()
    assert not past.layers[0].values.any()


def test_the_saved_prefix_has_its_gates_in_it(tmp_path: Path) -> None:
    method = unipelt.build(unipelt.Options())
    model: Any = method.apply(tiny_model("llama"), HOW)
    train(model)
    method.save(model, tmp_path)
    loaded: Any = unipelt.attach(tiny_model("llama"), tmp_path)
    assert not hasattr(loaded.prompt_encoder["default"], "gate_L")
    assert torch.allclose(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5)


@pytest.mark.parametrize("module", [mam, unipelt])
def test_the_mlp_is_left_out_of_what_is_saved(module: Any, tmp_path: Path) -> None:
    method = module.build(module.Options(projection=True))
    model: Any = method.apply(tiny_model("qwen2"), HOW)
    train(model, 3)
    method.save(model, tmp_path)
    loaded: Any = module.attach(tiny_model("qwen2"), tmp_path)
    assert torch.allclose(loaded(input_ids=IDS).logits, model(input_ids=IDS).logits, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"), [({"num_hidden_layers": 2}, "prefix has"), ({"hidden_size": 64}, "made for")]
)
@pytest.mark.parametrize("module", [mam, unipelt])
def test_another_base_is_refused(module: Any, settings: dict[str, int], said: str, tmp_path: Path) -> None:
    method = module.build(module.Options())
    method.save(method.apply(tiny_model("llama"), HOW), tmp_path)
    with pytest.raises(ModelError, match=said):
        module.attach(tiny_model("llama", **settings), tmp_path)


@pytest.mark.parametrize("module", [mam, unipelt])
def test_where_the_parts_do_not_compose(module: Any) -> None:
    base = tiny_model("llama")
    base.gradient_checkpointing_enable()
    with pytest.raises(ModelError, match="gradient checkpointing"):
        Scorer(module.build(module.Options()).apply(base, HOW))
    with pytest.raises(ModelError, match="adds 1 tokens"):
        module.build(module.Options()).apply(tiny_model("llama"), Apply(seed=3, new_token_ids=[299]))
    with pytest.raises(ModelError, match="virtual tokens stand before every row"):
        Scorer(module.build(module.Options()).apply(tiny_model("llama"), HOW), "segmented")


def test_unipelt_names_what_is_wrong() -> None:
    with pytest.raises(ModelError, match="'qproj'"):
        unipelt.build(unipelt.Options(target_modules=["qproj"])).apply(tiny_model("llama"), HOW)
