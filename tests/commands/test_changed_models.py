"""Runs on a model whose config was changed: trained, remembered, exported, resumed; and models trained from nothing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.cli import main
from luthier.commands.chat import chat
from luthier.commands.export import export
from luthier.commands.plan import plan
from luthier.commands.train import train
from luthier.config.loading import load
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import ConfigError, UserError
from luthier.model import loading
from tests.tiny import config_for, tiny_folder, write_rows

IDS = torch.arange(3, 60)[None]
LONGER = {"rope_scaling": {"type": "yarn", "factor": 4.0}, "config_overrides": {"num_hidden_layers": 2}}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "model", max_position_embeddings=32)


def changed_config(
    base: Path, out: Path, *, method: str = "lora", model: Any = None, **training: Any
) -> dict[str, Any]:
    rows = out.parent / "rows.jsonl"
    if not rows.exists():
        write_rows(rows)
    config = config_for(base, rows, out, **training)
    return {**config, "method": method, "model": {"name": str(base), **(LONGER if model is None else model)}}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=IDS).logits
    return found


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_was_trained_is_what_is_loaded_and_exported(
    method: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    luthier.train(changed_config(base, run, method=method, max_steps=4))
    assert "positions up to" not in capsys.readouterr().err, "rows of 64 tokens are within 4 x 32 positions"
    model = loading.load(loading.find(ModelConfig(name=str(run))), torch.float32)
    assert len([n for n, _ in model.named_modules() if n.endswith("self_attn")]) == 2
    assert export(str(run), tmp_path / "out").largest_logit_difference < 1e-4
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.allclose(logits(plain), logits(model), atol=1e-4)
    assert plain.config.rope_parameters["rope_type"] == "yarn"
    assert plain.config.max_position_embeddings == 128
    assert chat(str(run), prompt="the fox", max_new_tokens=3) is not None
    other = loading.load(loading.find(ModelConfig(name=str(base))), torch.float32)
    assert not torch.allclose(logits(plain), logits(other), atol=1e-2)


def test_an_adapter_on_an_adapter_stands_on_the_changed_base(base: Path, tmp_path: Path) -> None:
    luthier.train(changed_config(base, tmp_path / "first", max_steps=2))
    again = changed_config(base, tmp_path / "second", max_steps=2)
    luthier.train({**again, "model": str(tmp_path / "first")})
    config = loading.config_of(loading.find(ModelConfig(name=str(tmp_path / "second"))))
    assert (config.rope_parameters["factor"], config.max_position_embeddings) == (4.0, 128)
    luthier.train(
        {**again, "output_dir": str(tmp_path / "third")}
        | {"model": {"name": str(tmp_path / "first"), "continue_adapter": True}}
    )
    third = loading.find(ModelConfig(name=str(tmp_path / "third")))
    assert third.settings.rope_scaling is not None and third.settings.config_overrides == {"num_hidden_layers": 2}


def test_a_run_on_dynamic_positions_ends_with_the_same_bits(base: Path, tmp_path: Path) -> None:
    model = {"rope_scaling": {"type": "dynamic", "factor": 4.0}}
    config = changed_config(base, tmp_path / "run", model=model, per_device_train_batch_size=2)
    luthier.train(config)
    again = tmp_path / "again"
    shutil.copytree(tmp_path / "run", again)
    shutil.rmtree(again / "final")
    for later in ("step-00000008", "step-00000012"):
        shutil.rmtree(again / "checkpoints" / later)
    facts = json.loads((again / "run.json").read_text())
    (again / "run.json").write_text(json.dumps({**facts, "status": "interrupted"}))
    train(config, [f"output_dir={again}"], resume=True)
    name = "final/adapter_model.safetensors"
    assert (again / name).read_bytes() == (tmp_path / "run" / name).read_bytes()
    with pytest.raises(UserError, match=r"model\.rope_scaling\.factor: 4\.0 -> 8\.0"):
        train(config, ["model.rope_scaling.factor=8"], resume=True)


def test_rows_beyond_the_stretched_positions_are_still_said(base: Path, tmp_path: Path) -> None:
    remarks = plan(
        changed_config(base, tmp_path / "run", model={"rope_scaling": {"type": "linear", "factor": 1.5}})
    ).remarks
    assert any("the model knows positions up to 48" in remark for remark in remarks)


def test_an_unset_factor_is_what_the_rows_need(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = changed_config(base, tmp_path / "run", model={"rope_scaling": {"type": "yarn"}}, max_steps=1)
    luthier.train(config)  # rows of 64, and 32 positions
    source = loading.find(ModelConfig(name=str(tmp_path / "run")))
    assert source.settings.rope_scaling is not None and source.settings.rope_scaling.factor == 2.0
    assert load(str(tmp_path / "run" / "config.yaml")).model.rope_scaling == source.settings.rope_scaling
    config["data"]["cutoff_length"] = 20
    luthier.train({**config, "output_dir": str(tmp_path / "short")})
    assert not (tmp_path / "short" / "final" / "base_settings.json").exists()
    said = capsys.readouterr().err
    assert "factor 2, as data.cutoff_length 64 needs" in said and "left out: data.cutoff_length 20" in said


def test_plan_counts_what_would_be_trained(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "weights_at", lambda *args, **kwargs: pytest.fail("weights were read"))
    monkeypatch.setattr(loading, "fresh_weights", lambda *args, **kwargs: pytest.fail("weights were made"))
    whole = plan(changed_config(base, tmp_path / "run", model={})).total_parameters
    two = plan(changed_config(base, tmp_path / "run")).total_parameters
    a_layer = 2 * 32 * 32 + 2 * 16 * 32 + 3 * 32 * 48 + 2 * 32  # attention, feed-forward, norms; LoRA beside them
    updates = 8 * ((32 + 32) * 2 + (32 + 16) * 2 + (32 + 48) * 3)
    assert whole - two == a_layer + updates
    scratch = {"from_scratch": True, "config_overrides": {"hidden_size": 64, "num_hidden_layers": 1}}
    result = plan(changed_config(base, tmp_path / "run", method="full", model=scratch))
    assert result.trainable_parameters == result.total_parameters


def test_a_model_from_nothing_with_its_own_tokenizer(base: Path, tmp_path: Path) -> None:
    """`tokenizer train`, then pretraining, then chat's loading and plain transformers."""
    texts = tmp_path / "texts.jsonl"
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    lines = [" ".join(words[i % 3 :] + words[: i % 5]) + "." for i in range(60)]
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    assert (
        main(
            [
                "tokenizer",
                "train",
                str(texts),
                "--out",
                str(tmp_path / "words"),
                "--algorithm",
                "byte-bpe",
                "--vocab-size",
                "300",
            ]
        )
        == 0
    )
    overrides = {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 4, "num_hidden_layers": 2}
    config = {
        "model": {
            "name": str(base),
            "tokenizer": str(tmp_path / "words"),
            "from_scratch": True,
            "config_overrides": overrides,
        },
        "data": {"train": str(texts), "cutoff_length": 32},
        "stage": "pretrain",
        "method": "full",
        "training": {
            "max_steps": 40,
            "learning_rate": 3e-3,
            "logging_steps": 1,
            "save_strategy": "no",
            "use_cpu": True,
        },
        "output_dir": str(tmp_path / "run"),
    }
    result = luthier.train(config)
    losses = [line["loss"] for line in result.history if "loss" in line]
    assert losses[-1] < 0.4 * losses[0]
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert model.config.vocab_size == len(tokenizer) and model.config.hidden_size == 48
    again = luthier.train({**config, "output_dir": str(tmp_path / "again")})
    assert [line["loss"] for line in again.history if "loss" in line] == losses, "the seed decides the first weights"
    other = {
        **config,
        "output_dir": str(tmp_path / "other"),
        "training": {**config["training"], "seed": 7, "max_steps": 1},
    }
    assert luthier.train(other).train_loss != losses[0]


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ({"from_scratch": True}, "method is lora: set method to full"),
        (
            {"from_scratch": True, "quantization": "nf4"},
            "from_scratch makes new weights, which quantization can't have",
        ),
        ({"tokenizer": "words"}, "tokenizer acts with from_scratch: true only"),
        ({"rope_scaling": {"type": "linear", "factor": 1}}, "factor"),
        (
            {"rope_scaling": {"type": "linear", "factor": 2, "beta_fast": 9}},
            "beta_fast would have no effect with type linear",
        ),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2, "beta_fast": 1, "beta_slow": 2}},
            "must not be below beta_slow",
        ),
        ({"rope_scaling": {"type": "yarm", "factor": 2}}, "model.rope_scaling.type: must be"),
    ],
)
def test_settings_that_exclude_each_other(model: dict[str, Any], said: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        load(changed_config(base, tmp_path / "run", model=model))
    assert any(said in problem for problem in error.value.problems), error.value.problems
