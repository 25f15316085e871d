"""Tokenizers that lack something: what is mended is said, and new tokens learn under every method."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import luthier
from luthier.model.tokenizers.repair import fit_model, repair
from tests.tiny import config_for, tiny_folder, tiny_model, tiny_tokenizer


def test_nothing_to_mend() -> None:
    tokenizer = tiny_tokenizer()
    mended = repair(tokenizer, tiny_model("llama").config, ["<|im_start|>", "<|im_end|>"], ["<|im_end|>"])
    assert mended.changes == ()
    assert mended.new_token_ids == ()
    assert mended.stop_token_ids == (tokenizer.eos_token_id,)


def test_missing_eos_and_pad_are_found_and_announced() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.eos_token = tokenizer.pad_token = None
    mended = repair(tokenizer, tiny_model("llama").config)  # the config's eos_token_id is 2
    assert tokenizer.eos_token == tokenizer.pad_token == "<|im_end|>"
    assert len(mended.changes) == 2
    assert "no EOS token; <|im_end|> is used" in mended.changes[0]
    assert "stays a target" in mended.changes[1]


def test_new_tokens_get_rows_that_start_as_the_mean() -> None:
    tokenizer, model = tiny_tokenizer(), tiny_model("llama")
    old = model.get_input_embeddings().weight.detach().clone()
    mended = repair(tokenizer, model.config, ["<|eot_id|>", "<|start|>"], ["<|eot_id|>"])
    assert mended.new_token_ids == (300, 301)
    assert mended.stop_token_ids == (tokenizer.eos_token_id, 300)
    changes = fit_model(model, tokenizer, mended)
    new = model.get_input_embeddings().weight
    assert torch.equal(new[:300], old)
    assert torch.allclose(new[300], old.mean(0)) and torch.equal(new[300], new[301])
    assert model.generation_config.eos_token_id == [tokenizer.eos_token_id, 300]
    assert any("grows from 300 to 302" in change for change in changes)


@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])  # untied, tied, tied with Conv1D
def test_new_rows_learn_under_lora_and_load_in_plain_peft(kind: str, rows: Path, tmp_path: Path) -> None:
    """llama3's template on a tokenizer without its tokens: after training, only the new rows of the embedding moved."""
    base = tiny_folder(tmp_path / "base", kind, template=None)
    config = config_for(base, rows, tmp_path / "run")
    config["data"]["template"] = "llama3"
    config["data"]["cutoff_length"] = 200
    luthier.train(config)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    assert len(tokenizer) > 300
    assert tokenizer.chat_template and "<|eot_id|>" in tokenizer.chat_template
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    assert eot in json.loads((tmp_path / "run" / "final" / "generation_config.json").read_text())["eos_token_id"]

    model = AutoModelForCausalLM.from_pretrained(base)
    original = model.get_input_embeddings().weight.detach().clone()
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    merged = PeftModel.from_pretrained(model, tmp_path / "run" / "final").merge_and_unload()
    rows_after = merged.get_input_embeddings().weight
    assert torch.equal(rows_after[:300], original)
    assert float((rows_after[eot] - original.mean(0)).abs().max()) > 1e-3, "the new row has learnt"
    if kind == "llama":
        head = merged.get_output_embeddings().weight
        assert float((head[eot] - head[:300].mean(0)).abs().max()) > 1e-3

    # the same through luthier's own loading, which resizes by itself
    from luthier.commands.export import export

    result = export(str(tmp_path / "run"), tmp_path / "merged")
    assert result.largest_logit_difference < 1e-4
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "merged").get_input_embeddings().weight.shape[0] == len(
        tokenizer
    )


@pytest.mark.parametrize("method", ["full", "freeze"])
def test_new_rows_learn_under_methods_of_whole_weights(method: str, rows: Path, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base", template=None)
    config = config_for(base, rows, tmp_path / "run")
    config["data"] |= {"template": "llama3", "cutoff_length": 200}
    config["method"] = {"name": method, **({"trainable_layers": 1} if method == "freeze" else {})}
    luthier.train(config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "final")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "final")
    eot = tokenizer.convert_tokens_to_ids("<|eot_id|>")
    original = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    assert float((model.get_input_embeddings().weight[eot] - original.mean(0)).detach().abs().max()) > 1e-3


def test_pad_equal_to_eos_never_removes_an_eos_target(rows: Path, tmp_path: Path) -> None:
    base = tiny_folder(tmp_path / "base")
    settings = json.loads((base / "tokenizer_config.json").read_text())
    settings["pad_token"] = settings["eos_token"]
    (base / "tokenizer_config.json").write_text(json.dumps(settings))
    from luthier.commands.setup import set_up
    from luthier.config.loading import load

    setup = set_up(load(config_for(base, rows, tmp_path / "run")), say=lambda text: None)
    assert setup.tokenizer.pad_token_id == setup.tokenizer.eos_token_id
    for example in setup.data.train:
        if not example.truncated:
            assert example.sequences[0].input_ids[-1] == setup.tokenizer.eos_token_id
            assert example.sequences[0].weights[-1] == 1.0
