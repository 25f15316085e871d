"""Bottleneck adapters and added layers: what defines them, and what they refuse."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from luthier.data.packing import pack
from luthier.foundation.errors import ModelError
from luthier.model import loading
from luthier.model.bottleneck import Bottleneck, bottlenecks
from luthier.model.method import Apply, count_parameters
from luthier.model.methods import adapter, llama_pro
from luthier.scoring.scorer import Scorer
from tests.scoring.test_routes import random_examples
from tests.tiny import tiny_folder, tiny_model

HOW = Apply(seed=3, base_name="base/of-it")
IDS = torch.arange(3, 40)[None]


def with_bottlenecks(**options: Any) -> Any:
    """A tiny Llama whose bottlenecks add something."""
    model: Any = adapter.build(adapter.Options(reduction_factor=4, **options)).apply(tiny_model("llama"), HOW)
    for index, made in enumerate(bottlenecks(model)):
        nn.init.normal_(made.up.weight, std=0.3, generator=torch.Generator().manual_seed(index))
    return model


@pytest.mark.parametrize(("placement", "count"), [("pfeiffer", 3), ("houlsby", 6), ("parallel", 3)])
def test_bottlenecks_are_counted(placement: str, count: int) -> None:
    model = with_bottlenecks(placement=placement)
    assert len(bottlenecks(model)) == count
    # down 32 -> 8 and up 8 -> 32, with biases
    assert count_parameters(model).trainable == count * (32 * 8 + 8 + 8 * 32 + 32)
    assert not any(p.requires_grad for name, p in model.named_parameters() if "bottleneck" not in name)


def test_after_beside_and_on_both_modules() -> None:
    """A layer's arithmetic by hand: x + attention, then the feed-forward with its bottleneck."""
    hidden = torch.randn(1, 5, 32, generator=torch.Generator().manual_seed(0))
    for placement in ("pfeiffer", "parallel"):
        mlp = with_bottlenecks(placement=placement, scale=2.0).model.layers[0].mlp
        made: Bottleneck = mlp.bottleneck
        plain = mlp.down_proj(mlp.act_fn(mlp.gate_proj(hidden)) * mlp.up_proj(hidden))
        read = hidden if placement == "parallel" else plain
        added = 2.0 * (torch.relu(read @ made.down.weight.T + made.down.bias) @ made.up.weight.T + made.up.bias)
        assert torch.allclose(mlp(hidden), plain + added, atol=1e-5)
    houlsby = with_bottlenecks(placement="houlsby").model.layers[0]
    assert houlsby.self_attn.bottleneck is not houlsby.mlp.bottleneck


def test_bottlenecks_of_another_model_are_refused_before_use(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    method = adapter.build(adapter.Options())
    model = method.apply(tiny_model("llama"), Apply(seed=3, base_name=str(base)))
    (tmp_path / "made").mkdir()
    method.save(model, tmp_path / "made")
    settings = json.loads((tmp_path / "made" / "adapter_config.json").read_text())
    assert settings["luthier_method"] == "adapter"
    assert settings["options"]["placement"] == "pfeiffer"
    with pytest.raises(ModelError, match=r"made for another model: model\.layers\.2"):
        adapter.attach(tiny_model("llama", num_hidden_layers=2), tmp_path / "made")
    with pytest.raises(ModelError, match="made for another model"):
        adapter.attach(tiny_model("llama", hidden_size=64), tmp_path / "made")

    source = loading.ModelSource(base, tmp_path / "made", str(base), None, "")
    assert len(bottlenecks(loading.load(source, torch.float32))) == 3
    (tmp_path / "made" / "adapter_config.json").write_text(json.dumps({**settings, "luthier_method": "os.path"}))
    with pytest.raises(ModelError, match=r"the method 'os\.path', which this luthier does not know"):
        loading.load(source, torch.float32)


@pytest.mark.parametrize(("wanted", "layers"), [(None, 4), (1, 4), (2, 5), (3, 6)])
def test_added_layers_are_copies_that_change_nothing(wanted: int | None, layers: int) -> None:
    base = tiny_model("qwen2")
    with torch.no_grad():
        expected = base(input_ids=IDS).logits
        model: Any = llama_pro.build(llama_pro.Options(num_new_layers=wanted)).apply(tiny_model("qwen2"), HOW)
        assert torch.equal(model(input_ids=IDS).logits, expected)
    config = model.config
    assert config.num_hidden_layers == len(config.layer_types) == len(model.model.layers) == layers
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == list(range(layers))
    learning = [layer for layer in model.model.layers if all(p.requires_grad for p in layer.parameters())]
    assert len(learning) == layers - 3
    assert learning[-1] is model.model.layers[-1]
    assert count_parameters(model).trainable == sum(p.numel() for layer in learning for p in layer.parameters())


def test_more_layers_than_there_are_can_not_be_added() -> None:
    with pytest.raises(ModelError, match="num_new_layers is 4, but the model has 3 layers"):
        llama_pro.build(llama_pro.Options(num_new_layers=4)).apply(tiny_model("llama"), HOW)


def test_the_skeleton_s_config_is_left_as_it_is(tmp_path: Path) -> None:
    """Names and counts are tried on a skeleton first; the model that is read afterwards must not have grown twice."""
    config = loading.config_at(tiny_folder(tmp_path / "base", "qwen2"))
    llama_pro.build(llama_pro.Options(num_new_layers=2)).apply(loading.skeleton(config), HOW)
    assert config.num_hidden_layers == 3
    assert len(config.layer_types) == 3


@pytest.mark.parametrize("made", [llama_pro, adapter])
def test_both_routes_see_what_was_added(made: Any) -> None:
    """Packed rows stay apart in added layers too: values and gradients as in padded rows, once they are not zero."""
    batch, scored, gradients = pack(random_examples([12, 7, 9])), [], []
    for route in ("padded", "segmented"):
        model = made.build(made.Options()).apply(tiny_model("qwen2"), HOW)
        trained = [p for p in model.parameters() if p.requires_grad]
        with torch.no_grad():
            for index, parameter in enumerate(trained):
                parameter += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(index))
        logp_N = Scorer(model, route)(batch).logp_N
        logp_N.sum().backward()
        scored.append(logp_N.detach())
        gradients.append(torch.cat([p.grad.flatten() for p in trained]))
    assert torch.allclose(*scored, rtol=1e-5, atol=1e-5)
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) < 1e-4
