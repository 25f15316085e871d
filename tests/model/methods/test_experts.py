"""Target modules on a mixture of experts: what is named learns, or a sentence says what does not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer

from luthier.config.adapters_section import CombineConfig
from luthier.config.plugins import METHODS
from luthier.foundation.errors import ModelError
from luthier.model.adapters import AdapterPart, check_parts, put_on
from luthier.model.merging import merge
from luthier.model.method import Apply
from luthier.model.methods import lora
from tests.model.methods.families import family_model

HOW = Apply(seed=3)


def updated(model: Any) -> set[str]:
    return {name for name, module in model.get_base_model().named_modules() if isinstance(module, BaseTunerLayer)}


@pytest.mark.parametrize("kind", ["mixtral", "deepseek", "qwen2_moe"])
def test_an_expression_takes_what_it_matches(kind: str, tmp_path: Path) -> None:
    """peft alone would take q_proj and o_proj of every layer. What is saved says the same to it."""
    method = lora.build(lora.Options(rank=4, target_modules=r"model\.layers\.1\..*\.[qo]_proj"))
    made = method.apply(family_model(kind), HOW)
    assert updated(made) == {f"model.layers.1.self_attn.{name}_proj" for name in "qo"}
    method.save(made, tmp_path)
    assert updated(PeftModel.from_pretrained(family_model(kind), tmp_path)) == updated(made)


def test_an_expression_that_peft_takes_for_stacked_experts() -> None:
    dense = lora.Options(rank=4, target_modules=r"model\.layers\.0\.mlp\..*_proj")
    with pytest.raises(
        ModelError, match=r"updates on model\.layers\.\*\.mlp\.experts\.down_proj, .*gate_up_proj of Deep"
    ):
        lora.build(dense).apply(family_model("deepseek"), HOW)


THREE = ["gate_proj", "up_proj", "down_proj"]
STACKED = "model.layers.*.mlp.experts.down_proj, model.layers.*.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("kind", "method", "left"),
    [
        ("deepseek", {"name": "lora"}, 6),
        ("deepseek", {"name": "lora", "target_modules": ["q_proj", *THREE]}, 6),
        ("deepseek", {"name": "lora", "modules_to_save": ["shared_experts"]}, 3),
        ("deepseek", {"name": "lora", "modules_to_save": ["shared_experts", "layers.0.mlp"]}, 0),
        ("deepseek", {"name": "lora", "target_modules": ["q_proj"]}, 0),
        ("mixtral", {"name": "lora"}, 0),
        ("mixtral", {"name": "vera"}, 4),
        ("qwen2_moe", {"name": "lora"}, 4),
        ("qwen2_moe", {"name": "lora", "target_modules": THREE}, 0),
        ("qwen2_moe", {"name": "adalora"}, 4),
    ],
)
def test_what_gets_no_update_is_told(
    kind: str, method: dict[str, Any], left: int, capsys: pytest.CaptureFixture[str]
) -> None:
    module = METHODS.load(method["name"])
    module.build(module.Options(**method)).apply(family_model(kind), Apply(seed=3, total_steps=30))
    said = capsys.readouterr().err
    if not left:
        assert "no update" not in said
        return
    assert f"method: {left} of the target modules get no update" in said
    assert (STACKED if left == 4 else "model.layers.*.mlp.down_proj, model.layers.*.mlp.gate_proj") in said
    assert ("shared_experts" in said) == (left == 6)


@pytest.mark.parametrize("init", ["orthogonal", "pissa", "olora", "eva"])
@pytest.mark.parametrize("kind", ["mixtral", "deepseek"])
def test_a_start_that_stacked_experts_can_not_have(kind: str, init: Any) -> None:
    """Said on the model without weights."""
    with pytest.raises(
        ModelError, match=rf"init is {init}, which peft can't do beside .*\(down_proj, gate.weight, gate_up"
    ):
        lora.build(lora.Options(rank=2, init=init)).apply(family_model(kind).to("meta"), HOW)
    attention = lora.build(lora.Options(rank=2, init=init, target_modules=["q_proj"]))
    assert updated(attention.apply(family_model(kind).to("meta"), HOW))


def test_updates_of_stacked_experts_are_weighted_and_not_combined(tmp_path: Path) -> None:
    method, base = lora.build(lora.Options(rank=2)), family_model("mixtral")
    made = method.apply(family_model("mixtral"), HOW)
    for name, factor in made.named_parameters():
        if ".lora_B." in name:
            factor.data.normal_(generator=torch.Generator().manual_seed(len(name)))
    method.save(made, tmp_path)
    part, half = AdapterPart(tmp_path), AdapterPart(tmp_path, 0.5)
    for combine in ("cat", "svd", "linear"):
        with pytest.raises(ModelError, match=f"combine: {combine} is not possible .* its target_parameters is"):
            check_parts([part, half], CombineConfig(name=combine))
    check_parts([part, half], CombineConfig())
    whole, halved = (
        merge(put_on(family_model("mixtral"), [one], CombineConfig())).state_dict() for one in (part, half)
    )
    for name, value in base.state_dict().items():
        torch.testing.assert_close(halved[name], (value + whole[name]) / 2, msg=name)
