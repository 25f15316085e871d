"""LoftQ: the update starts as what quantization took from the weights, and stays with the quantized base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import luthier
from luthier.commands.chat import chat
from luthier.commands.export import export
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import ModelError
from luthier.model import loading, loftq
from luthier.model.inspection import MENDING
from luthier.model.method import Apply
from luthier.model.methods import lora
from luthier.training import reference
from tests.tiny import config_for, tiny_folder, write_rows

pytest.importorskip("bitsandbytes")
WIDE = {"hidden_size": 64, "intermediate_size": 128}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model", **WIDE)


@pytest.fixture(scope="module")
def config(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("runs")
    made = config_for(base, write_rows(place / "rows.jsonl"), place / "run", max_steps=4, save_steps=2)
    made["model"] = {"name": str(base), "quantization": "nf4"}
    return {**made, "method": {"name": "lora", "rank": 16, "init": "loftq"}}


@pytest.fixture(scope="module")
def run(config: dict[str, Any]) -> Path:
    luthier.train(config)
    return Path(config["output_dir"])


def logits(name: Path, **model: Any) -> Tensor:
    source = loading.find(ModelConfig(name=str(name), **model))
    with torch.no_grad():
        found: Tensor = loading.load(source, torch.float32).eval()(input_ids=IDS).logits
    return found


def test_factors_are_the_nearest_of_their_rank() -> None:
    """s B A has the matrix' own largest singular values, and what is left has the others (Eckart and Young)."""
    error = torch.randn(12, 20, generator=torch.Generator().manual_seed(0))
    down, up = loftq.nearest(error, 3, scaling=2.0)
    values = torch.linalg.svdvals(error)
    assert torch.allclose(torch.linalg.svdvals(2 * up @ down)[:3], values[:3], atol=1e-4)
    assert torch.allclose((error - 2 * up @ down).norm() ** 2, (values[3:] ** 2).sum(), rtol=1e-4)


def test_it_starts_nearer_to_the_plain_base(config: dict[str, Any], base: Path, tmp_path: Path) -> None:
    """A step too small to change anything leaves what it started as: closer to the plain weights than the quantized ones."""
    still = {**config["training"], "learning_rate": 1e-30, "max_steps": 1}
    luthier.train({**config, "training": still, "output_dir": str(tmp_path / "run")})
    plain, quantized = logits(base), logits(base, quantization="nf4")
    mended = logits(tmp_path / "run")
    assert (mended - plain).norm() < 0.8 * (quantized - plain).norm()


def test_with_dora_it_starts_as_without(base: Path) -> None:
    """m = |Q + s B A|, so that m (Q + s B A) / |Q + s B A| is the mended weight."""

    def start(**options: Any) -> Tensor:
        source = loading.find(ModelConfig(name=str(base), quantization="nf4"))
        how = Apply(seed=3, quantized=True, base_folder=base)
        method = lora.build(lora.Options(rank=16, init="loftq", **options))
        model = method.apply(loading.load(source, torch.float32).eval(), how)
        with torch.no_grad():
            found: Tensor = model(input_ids=IDS).logits
        return found

    assert torch.allclose(start(use_dora=True), start(), atol=1e-4)


def test_resumed_it_does_not_start_again(run: Path, config: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (run / "final" / "adapter_model.safetensors").read_bytes()
    shutil.rmtree(run / "final")
    shutil.rmtree(run / "checkpoints" / "step-00000004")
    monkeypatch.setattr(loftq, "start_from_the_error", lambda *_: pytest.fail("started again"))
    luthier.train(config, resume=True)
    assert (run / "final" / "adapter_model.safetensors").read_bytes() == whole
    assert (run / "final" / MENDING).is_file()


def test_going_on_a_preference_run_still_begins_with_the_mended_model(
    base: Path, config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its reference is that model: where none is kept any more, it is computed anew, and must have the same numbers."""
    monkeypatch.setattr(reference, "reference_folder", lambda: tmp_path / "references")
    rows = [{"instruction": f"{n} foxes", "chosen": "quick brown", "rejected": "your name"} for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = {"train": str(tmp_path / "pairs.jsonl"), "cutoff_length": 64}
    run = {**config, "stage": "dpo", "data": data, "output_dir": str(tmp_path / "run")}
    ends = []
    for resume in (False, True):
        luthier.train(run, resume=resume)
        (kept,) = (tmp_path / "references").glob("*/*.safetensors")
        ends.append([kept.read_bytes(), (tmp_path / "run" / "final" / "adapter_model.safetensors").read_bytes()])
        for folder in ("references", "run/final", "run/checkpoints/step-00000004"):
            shutil.rmtree(tmp_path / folder)
    assert ends[0] == ends[1]


def test_merged_it_is_the_trained_model(run: Path, tmp_path: Path) -> None:
    """Into the values of the quantized weights: the plain ones lack nothing that it could give back."""
    assert export(str(run), tmp_path / "merged").largest_logit_difference < 1e-4
    assert torch.allclose(logits(tmp_path / "merged"), logits(run), atol=1e-3)
    assert chat(str(run), prompt="what is your name", max_new_tokens=3) is not None


def test_it_goes_on_and_keeps_its_mark(run: Path, config: dict[str, Any], tmp_path: Path) -> None:
    model = {"name": str(run), "continue_adapter": True}
    luthier.train({**config, "model": model, "method": "lora", "output_dir": str(tmp_path / "run")})
    assert (tmp_path / "run" / "final" / MENDING).is_file()


def test_what_it_can_not_be_put_on(run: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="mends its base's quantization: it can't be put together"):
        loading.find(ModelConfig.model_validate({"name": str(base), "adapters": [str(run), str(run)]}))
    with pytest.raises(ModelError, match="mends that of"):
        loading.find(ModelConfig.model_validate({"name": str(run), "quantization": "int8"}))
    saved = shutil.copytree(base, tmp_path / "saved")
    settings = (saved / "config.json").read_text()
    (saved / "config.json").write_text(
        settings.replace("{", '{"quantization_config": {"quant_method": "bitsandbytes"},', 1)
    )
    with pytest.raises(ModelError, match="quantized already: what they lost is not known"):
        loftq.start_from_the_error(None, saved)
