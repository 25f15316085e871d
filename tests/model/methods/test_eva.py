"""EVA: the first factors are found in the run's own rows, once, and the same everywhere."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import luthier
from luthier.commands.calibration import calibration_batches
from luthier.commands.plan import plan
from luthier.commands.setup import Setup, set_up
from luthier.config.loading import load
from luthier.foundation.errors import ConfigError, ModelError
from luthier.model import eva, loading
from luthier.model.method import Apply, count_parameters
from luthier.model.methods import lora
from tests.tiny import config_for, tiny_folder, write_rows


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model", "qwen2")


@pytest.fixture
def config(base: Path, tmp_path: Path) -> dict[str, Any]:
    made = config_for(base, write_rows(tmp_path / "rows.jsonl", 40), tmp_path / "run", max_steps=4, save_steps=2)
    return {**made, "method": {"name": "lora", "rank": 4, "init": "eva"}}


def prepared(config: dict[str, Any]) -> Setup:
    return set_up(load(config), say=lambda text: None)


def applied(setup: Setup, base: Path, **options: Any) -> Any:
    how = Apply(seed=3, base_name=str(base), batches=lambda least: calibration_batches(setup, least))
    method = lora.build(lora.Options(rank=4, init="eva", **options))
    return method.apply(loading.weights_at(base, torch.float32), how)


def test_batches_are_the_run_s_first_rows_with_their_targets_marked(config: dict[str, Any]) -> None:
    setup = prepared(config)
    batches = calibration_batches(setup, 50)
    assert all(int((batch["labels"] != -100).sum()) >= 50 for batch in batches)
    assert sum(int((batch["labels"] != -100).sum()) for batch in batches) == setup.data.train.targets
    first = setup.data.train[setup.schedule.indices(0, 0)[0][0]].sequences[0]  # type: ignore[attr-defined]
    length = len(first.input_ids)
    assert batches[0]["input_ids"][0, :length].tolist() == list(first.input_ids)
    assert batches[0]["attention_mask"][0].sum() == length
    trained = [token if weight else -100 for token, weight in zip(first.input_ids, first.weights, strict=True)]
    assert batches[0]["labels"][0, :length].tolist() == trained
    with pytest.raises(ModelError, match="needs 100000 trained tokens to look at"):
        calibration_batches(setup, 100_000)


def test_the_first_factor_holds_what_the_inputs_vary_in(config: dict[str, Any], base: Path) -> None:
    """Its rows are orthonormal, and catch nearly as much of the variance as the exact principal directions do."""
    setup = prepared(config)
    model = applied(setup, base, eva_rho=1)
    inputs: list[Tensor] = []
    plain = loading.weights_at(base, torch.float32)
    target = plain.model.layers[1].mlp.down_proj
    with torch.no_grad():
        for batch in calibration_batches(setup, 4):
            handle = target.register_forward_hook(
                lambda module, given, output, read=batch["labels"] != -100: inputs.append(given[0][read])
            )
            plain(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            handle.remove()
    rows = torch.cat(inputs)
    rows = rows - rows.mean(dim=0)
    exact = torch.linalg.svd(rows, full_matrices=False).Vh[:4]
    found = model.get_base_model().model.layers[1].mlp.down_proj.lora_A["default"].weight.detach()
    assert torch.allclose(found @ found.T, torch.eye(4), atol=1e-4)
    assert (rows @ found.T).square().sum() > 0.95 * (rows @ exact.T).square().sum()
    drawn = torch.nn.functional.normalize(torch.randn(4, 48, generator=torch.Generator().manual_seed(0)))
    assert (rows @ drawn.T).square().sum() < 0.5 * (rows @ exact.T).square().sum(), "any directions would do"


def test_ranks_go_where_inputs_vary_and_the_budget_holds(config: dict[str, Any], base: Path) -> None:
    setup = prepared(config)
    shared, even = applied(setup, base, eva_rho=2), applied(setup, base, eva_rho=1)
    ranks = [len(p) for name, p in shared.named_parameters() if "lora_A" in name]
    assert sum(ranks) == 4 * 21
    assert len(set(ranks)) > 1
    assert max(ranks) <= 8
    assert all(len(p) == 4 for name, p in even.named_parameters() if "lora_A" in name)
    assert not any(p.any() for name, p in shared.named_parameters() if "lora_B" in name)
    assert all(p.requires_grad and p.dtype == torch.float32 for name, p in shared.named_parameters() if "lora_" in name)
    assert shared.peft_config["default"].init_lora_weights is True


def test_it_is_found_again_to_the_same_bits(config: dict[str, Any], base: Path) -> None:
    made = []
    for noise in (1, 2):
        torch.manual_seed(noise)
        made.append(applied(prepared(config), base).state_dict())
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(value, made[1][name]) for name, value in made[0].items())


def test_a_resumed_run_does_not_look_again(
    config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = luthier.train(config)
    run = tmp_path / "run"
    saved = json.loads((run / "final" / "adapter_config.json").read_text())
    assert saved["init_lora_weights"] is True, "a plain LoRA for whoever loads it"
    assert saved["rank_pattern"]
    whole = (run / "final" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    monkeypatch.setattr(eva, "start_from_activations", lambda *_: pytest.fail("looked again"))
    luthier.train(config, resume=True)
    assert (run / "final" / "adapter_model.safetensors").read_bytes() == whole
    loaded = loading.load(loading.find(load({**config, "model": str(run)}).model), torch.float32)
    assert count_parameters(loaded).total == result.total_parameters


def test_a_stream_has_first_rows_too(config: dict[str, Any], base: Path) -> None:
    config["data"]["streaming"] = True
    setup = prepared(config)
    batches = calibration_batches(setup, 50)
    assert len(batches) > 2
    assert all(
        torch.equal(*pair) for pair in zip(batches[0].values(), calibration_batches(setup, 50)[0].values(), strict=True)
    )


def test_what_can_not_be_found(config: dict[str, Any], monkeypatch: pytest.MonkeyPatch, base: Path) -> None:
    with pytest.raises(ModelError, match=r"method.rank x method.eva_rho is 40, more than all"):
        plan({**config, "method": {**config["method"], "rank": 20}})
    with pytest.raises(ConfigError, match="eva_rho is 1 but init is default"):
        load({**config, "method": {"name": "lora", "eva_rho": 1}})
    monkeypatch.setattr(eva, "MOST_PASSES", 3)
    with pytest.raises(ModelError, match="found no steady directions in 3 batches"):
        applied(prepared(config), base)
