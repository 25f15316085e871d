"""Runs on a base in 4 or 8 bits: train, resume, chat, export, and what is refused before anything is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import luthier
from luthier.cli import main
from luthier.commands.chat import chat
from luthier.commands.export import export
from luthier.commands.train import train
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import UserError
from luthier.model import loading
from luthier.model.base_settings import FILE
from luthier.model.quantization import is_quantized
from tests.tiny import config_for, tiny_folder, write_rows

WIDE = {"hidden_size": 64, "intermediate_size": 128}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model", **WIDE)


def quantized_config(base: Path, out: Path, how: Any = "nf4", **training: Any) -> dict[str, Any]:
    rows = out.parent / "rows.jsonl"
    if not rows.exists():
        write_rows(rows)
    config = config_for(base, rows, out, **training)
    config["model"] = {"name": str(base), "quantization": how}
    return config


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 steps with an evaluation in the middle."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = quantized_config(base, out, eval_strategy="steps", eval_steps=6)
    config["data"]["validation"] = 4
    luthier.train(config)
    return out


def losses(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 40)[None]).logits
    return found


def test_the_loss_falls_and_only_the_adapter_is_saved(run: Path) -> None:
    values = losses(run)
    assert sum(values[-3:]) < 0.97 * sum(values[:3])
    weights = {path.name for path in (run / "final").glob("*.safetensors")}
    assert weights == {"adapter_model.safetensors"}


def test_a_run_gone_on_with_ends_with_the_same_bits(run: Path, tmp_path: Path) -> None:
    again = tmp_path / "run"
    shutil.copytree(run, again)
    shutil.rmtree(again / "final")
    for later in ("step-00000008", "step-00000012"):
        shutil.rmtree(again / "checkpoints" / later)
    facts = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps({**facts, "status": "interrupted"}))
    train(str(again / "config.yaml"), [f"output_dir={again}"], resume=True)
    name = "final/adapter_model.safetensors"
    assert (again / name).read_bytes() == (run / name).read_bytes()
    assert losses(again) == losses(run)


def test_another_quantization_is_another_run(run: Path) -> None:
    with pytest.raises(UserError, match=r"model\.quantization.*nf4 -> fp4"):
        train(str(run / "config.yaml"), ["model.quantization=fp4"], resume=True)


def test_the_adapter_remembers_its_base(run: Path) -> None:
    from peft import PeftModel

    source = loading.find(ModelConfig(name=str(run)))
    model = loading.load(source, torch.float32)
    assert sum(is_quantized(module) for module in model.modules()) == 21
    how = source.settings.quantization
    assert how is not None and str(how) == "nf4 (double)"
    base = loading.weights_at(source.base, torch.float32, quantization=how)
    assert torch.equal(logits(model), logits(PeftModel.from_pretrained(base, run / "final"))), "peft loads it as it is"
    assert not [m for m in loading.load(source, torch.float32, plain=True).modules() if is_quantized(m)]


def test_it_answers_beside_its_base(run: Path) -> None:
    result = chat(str(run), prompt="the quick fox", compare_base=True, max_new_tokens=4)
    assert result is not None and result.answer != result.base_answer


def test_export_merges_into_plain_weights_and_says_by_how_much(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM

    result = export(str(run), tmp_path / "merged")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert getattr(model.config, "quantization_config", None) is None
    trained = loading.load(loading.find(ModelConfig(name=str(run))), torch.float32)
    from luthier.exporting.exporter import SAMPLE_TEXT
    from luthier.model.merging import sample_logits

    tokens = loading.tokenizer_at(run / "final")(SAMPLE_TEXT).input_ids
    expected = float((sample_logits(trained, tokens) - sample_logits(model, tokens)).abs().max())
    assert result.quantized_logit_difference == pytest.approx(expected, rel=1e-4)
    assert result.quantized_logit_difference > 1e-2 > 1e-4 > result.largest_logit_difference
    assert "trained beside quantized weights" in capsys.readouterr().err
    adapter = export(str(run), tmp_path / "adapter", format="adapter")
    assert adapter.largest_logit_difference == 0
    assert (tmp_path / "adapter" / FILE).is_file()


def test_training_goes_on_from_it_in_plain_weights_unless_asked(run: Path, base: Path, tmp_path: Path) -> None:
    config = quantized_config(base, tmp_path / "next", max_steps=1)
    for quantization, name in ((None, "full"), ("int8", "lora")):
        config |= {"model": {"name": str(run), "quantization": quantization}, "method": name}
        config["output_dir"] = str(tmp_path / name)
        luthier.train(config)
    start = loading.load(loading.find(ModelConfig(name=str(run))), torch.float32, plain=True).merge_and_unload()
    merged = loading.weights_at(tmp_path / "lora" / "base", torch.float32)
    assert torch.allclose(logits(start), logits(merged), atol=1e-5)


@pytest.mark.parametrize("how", ["fp4", "int8"])
def test_the_other_types_train(how: str, base: Path, tmp_path: Path) -> None:
    luthier.train(quantized_config(base, tmp_path / "run", how, max_steps=8))
    values = losses(tmp_path / "run")
    assert sum(values[-2:]) < 0.99 * sum(values[:2])


def test_gradient_checkpointing_gives_the_same_numbers(base: Path, tmp_path: Path) -> None:
    for name, wanted in (("with", True), ("without", False)):
        luthier.train(quantized_config(base, tmp_path / name, max_steps=3, gradient_checkpointing=wanted))
    assert losses(tmp_path / "with") == pytest.approx(losses(tmp_path / "without"), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"method": "full"}, "method full trains the base's own weights"),
        ({"method": "bitfit"}, "method bitfit trains"),
        ({"method": {"name": "lora", "init": "pissa"}}, "method.init pissa"),
        ({"method": {"name": "lora", "modules_to_save": ["q_proj"]}}, "modules_to_save names q_proj"),
    ],
)
def test_what_can_not_train_is_refused_before_weights_are_read(
    change: dict[str, Any],
    said: str,
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(loading, "weights_at", lambda *args, **kwargs: pytest.fail("weights were read"))
    config = {**quantized_config(base, tmp_path / "run"), **change}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert main(["train", str(tmp_path / "config.json")]) == 2
    assert said in capsys.readouterr().err


def test_without_a_back_end_nothing_is_read(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    monkeypatch.setattr(loading, "find", lambda *args, **kwargs: pytest.fail("the model was looked for"))
    (tmp_path / "config.json").write_text(json.dumps(quantized_config(base, tmp_path / "run")))
    assert main(["train", str(tmp_path / "config.json")]) == 2
    said = capsys.readouterr().err
    assert "bitsandbytes" in said and "luthier[quantization]" in said


@pytest.mark.slow
@pytest.mark.network
def test_qlora_of_the_default_model_learns(smollm2_folder: Path, tmp_path: Path) -> None:
    """LoRA r=8 on q_proj and v_proj beside nf4 with double quantization, on this processor."""
    rows = Path(__file__).parents[2] / "examples" / "identity" / "identity.jsonl"
    config = config_for(smollm2_folder, rows, tmp_path / "run", max_steps=15, learning_rate=1e-3, save_strategy="no")
    config["model"] = {"name": str(smollm2_folder), "quantization": "nf4"}
    config["data"] = {"train": str(rows), "cutoff_length": 128}
    config["method"] = {"name": "lora", "rank": 8, "target_modules": ["q_proj", "v_proj"]}
    result = luthier.train(config)
    assert result.trainable_parameters == 460_800
    assert result.total_parameters == 134_515_008 + 460_800
    values = losses(tmp_path / "run")
    assert sum(values[-3:]) < 0.92 * sum(values[:3]), values
