"""Models that lie partly in memory and partly on the disk: the same answers, the same export; and maps that can't be."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import luthier
from luthier.cli import main
from luthier.commands.chat import chat
from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.export import export
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import ModelError, UserError
from luthier.model import loading
from luthier.model.placement import Placement, parse, resolved
from tests.classify import labelled_rows, write_json_lines
from tests.tiny import config_for, tiny_folder, write_rows

SPREAD = {
    "model.embed_tokens": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.layers.2": "disk",
    "": "cpu",
}
IDS = torch.arange(3, 40)[None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    luthier.train(config_for(base, write_rows(out / "rows.jsonl"), out / "run", max_steps=4))
    return out / "run"


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


def on_disk(model: Any) -> set[str]:
    return {name for name, weight in model.named_parameters() if weight.device.type == "meta"}


@pytest.mark.parametrize("what", ["base", "run"])
@pytest.mark.parametrize("spread", [SPREAD, {**SPREAD, "model.embed_tokens": "disk"}])
def test_it_computes_the_same(what: str, spread: dict[str, Any], base: Path, run: Path, tmp_path: Path) -> None:
    source = loading.find(ModelConfig(name=str({"base": base, "run": run}[what])))
    expected = logits(loading.load(source, torch.float32))
    model = loading.load(source, torch.float32, placement=Placement(spread, tmp_path / "off"))
    assert any("layers.2" in name for name in on_disk(model)) and not any("layers.0" in name for name in on_disk(model))
    assert torch.equal(logits(model), expected)
    if what == "run":
        assert list((tmp_path / "off").glob("luthier-offload-*"))
        del model
        gc.collect()
        assert not list((tmp_path / "off").glob("luthier-offload-*")), "what was put on the disk goes with the model"


def test_auto_fills_memory_first(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import accelerate.utils.modeling

    monkeypatch.setattr(accelerate.utils.modeling, "get_max_memory", lambda *_: {"cpu": 120_000})
    source = loading.find(ModelConfig(name=str(base)))
    model = loading.load(source, torch.float32, placement=Placement("auto", tmp_path / "off"))
    assert on_disk(model) and len(on_disk(model)) < len(list(model.parameters()))
    with pytest.raises(ModelError, match="on the disk, and no folder is named"):
        loading.load(source, torch.float32, placement=Placement("auto"))
    rows = write_rows(tmp_path / "rows.jsonl")
    config = config_for(base, rows, tmp_path / "run")
    with pytest.raises(ModelError, match=r"on disk, and this process trains on cpu"):
        luthier.train({**config, "model": {"name": str(base), "device_map": "auto"}})
    monkeypatch.undo()
    luthier.train(
        {**config_for(base, rows, tmp_path / "run", max_steps=1), "model": {"name": str(base), "device_map": "auto"}}
    )


@pytest.mark.parametrize("spread", [{"": "disk"}, {"model": "cpu", "lm_head": "disk"}, {"": "cuda:0"}])
def test_training_elsewhere_is_refused(
    spread: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "weights_at", lambda *args, **kwargs: pytest.fail("weights were read"))
    config = config_for(base, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run")
    with pytest.raises(ModelError, match=r"model\.device_map puts .* on (disk|cuda:0), and this process trains on cpu"):
        luthier.train({**config, "model": {"name": str(base), "device_map": spread}})


def test_chat_and_export(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spread = ["--device-map", json.dumps(SPREAD), "--offload-folder", str(tmp_path / "off")]
    here = chat(str(run), prompt="the fox", max_new_tokens=6)
    there = chat(
        str(run),
        prompt="the fox",
        max_new_tokens=6,
        device_map=json.dumps(SPREAD),
        offload_folder=str(tmp_path / "off"),
    )
    assert here == there
    assert main(["export", str(run), str(tmp_path / "spread"), *spread]) == 0
    export(str(run), tmp_path / "plain")
    first, second = (AutoModelForCausalLM.from_pretrained(tmp_path / name) for name in ("spread", "plain"))
    assert torch.allclose(logits(first), logits(second), atol=1e-5)
    assert main(["chat", str(run), "--prompt", "fox", "--max-new-tokens", "2", *spread, "--compare-base"]) == 0
    capsys.readouterr()
    assert main(["export", str(run), str(tmp_path / "half"), *spread, "--dtype", "bfloat16"]) == 2
    assert "Add --dtype float32" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "adapter"), *spread, "--format", "adapter"]) == 2
    assert "no effect on format adapter" in capsys.readouterr().err


def spread_out(folder: Path) -> list[str]:
    """Options that put the last layers and the head on the disk."""
    return ["--device-map", json.dumps({**SPREAD, "lm_head": "disk"}), "--offload-folder", str(folder)]


@pytest.fixture
def placed(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The device maps that models are read under."""
    found: list[Any] = []

    def noted(placement: Placement, *more: Any) -> dict[str, Any]:
        found.append(placement.device_map)
        return resolved(placement, *more)

    monkeypatch.setattr(loading, "resolved", noted)
    return found


@pytest.mark.parametrize("what", ["base", "run"])
def test_predictions_and_evaluations(what: str, base: Path, run: Path, tmp_path: Path, placed: list[Any]) -> None:
    model, rows = str({"base": base, "run": run}[what]), write_rows(tmp_path / "rows.jsonl", count=6)
    common = ["--data", str(rows), "--max-new-tokens", "6"]
    measured = ["--metric", "chrf", "--resamples", "0"]
    for name, more in (("here", []), ("there", spread_out(tmp_path / "off"))):
        assert len(placed) == 0
        assert main(["predict", model, *common, "--out", str(tmp_path / f"{name}.jsonl"), *more]) == 0
        assert main(["evaluate", model, *common, *measured, "--out", str(tmp_path / f"{name}.json"), *more]) == 0
    assert [found["lm_head"] for found in placed] == ["disk", "disk"]
    assert (tmp_path / "here.jsonl").read_text() == (tmp_path / "there.jsonl").read_text()
    here, there = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("here", "there"))
    assert there["sources"][0]["loss"] == pytest.approx(here["sources"][0]["loss"], rel=1e-5)
    assert there["metrics"]["chrf"]["value"] == here["metrics"]["chrf"]["value"]


def test_a_classifier_is_evaluated(base: Path, tmp_path: Path, placed: list[Any]) -> None:
    rows = write_json_lines(tmp_path / "rows.jsonl", labelled_rows(24))
    config = config_for(base, rows, tmp_path / "run", max_steps=6)
    luthier.train({**config, "stage": "classification", "data": {"train": str(rows)}})
    here = evaluate(str(tmp_path / "run"), [str(rows)], Asked(how=None))
    assert not placed
    spread = {**SPREAD, "score": "disk"}
    there = evaluate(str(tmp_path / "run"), [str(rows)], Asked(how=None, placement=Placement(spread, tmp_path / "off")))
    assert placed == [spread]
    assert [row["predicted"] for row in there.rows] == [row["predicted"] for row in here.rows]
    assert there.sources[0]["loss"] == pytest.approx(here.sources[0]["loss"], rel=1e-5)


@pytest.mark.parametrize(
    "more", [["--predictions", "a.jsonl"], ["--compare", "a.json", "b.json"], ["MODEL", "--harness", "arc_easy"]]
)
def test_a_map_without_effect_is_refused(more: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", *more, *spread_out(tmp_path)]) == 2
    assert "--device-map, --offload-folder would have no effect with" in capsys.readouterr().err


def test_a_vocabulary_does_not_grow_there(base: Path, tmp_path: Path) -> None:
    source = loading.find(ModelConfig(name=str(base)))
    model = loading.load(source, torch.float32, placement=Placement(SPREAD, tmp_path / "off"))
    tokenizer = loading.tokenizer_at(base)
    assert not loading.grow_embeddings(model, tokenizer)
    tokenizer.add_tokens(["<new>"])
    with pytest.raises(ModelError, match=r"301 tokens, the model's embedding 300"):
        loading.grow_embeddings(model, tokenizer)


@pytest.mark.parametrize(
    ("spread", "said"),
    [
        ({"model.layer.0": "cpu", "": "cpu"}, "Did you mean model.layers.0"),
        ({"model": "cpu"}, "no device for 1 weights, such as lm_head.weight"),
        ({"": "gpu7"}, "'gpu7', which is no device"),
        ({"": "disk"}, "no folder is named"),
    ],
)
def test_maps_that_can_not_be(spread: dict[str, Any], said: str, base: Path) -> None:
    with pytest.raises(ModelError) as error:
        loading.load(loading.find(ModelConfig(name=str(base))), torch.float32, placement=Placement(spread))
    assert said in str(error.value)


def test_a_quantized_base_lies_on_one_device(base: Path) -> None:
    source = loading.find(ModelConfig.model_validate({"name": str(base), "quantization": "int8"}))
    with pytest.raises(ModelError, match="lies on one device"):
        loading.load(source, torch.float32, placement=Placement("auto"))


def test_a_plain_base_may_be_read_quantized_for_a_chat(base: Path) -> None:
    assert chat(str(base), prompt="the fox", max_new_tokens=3, quantization="int8") is not None
    with pytest.raises(UserError, match="quantization"):
        chat(str(base), prompt="x", quantization="int7")


def test_how_a_command_line_says_it() -> None:
    assert parse(None, None) is None
    assert parse("auto", "off") == Placement("auto", Path("off"))
    assert parse("cpu", None) == Placement({"": "cpu"})
    assert parse('{"": 0}', None) == Placement({"": 0})
    with pytest.raises(UserError, match="broken JSON"):
        parse("{cpu}", None)
    with pytest.raises(UserError, match="no effect without --device-map"):
        parse(None, "off")
