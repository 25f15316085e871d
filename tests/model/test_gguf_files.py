"""GGUF files as bases: a file, a folder with one, a hub's; converted once, and then a model like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch

import luthier
from luthier.commands.models import fetch as fetch_model
from luthier.config.schema import ModelConfig
from luthier.foundation.errors import HubError, ModelError
from luthier.model import loading
from luthier.model.hubs import huggingface
from luthier.model.resolving import resolve
from tests.tiny import config_for, tiny_model, tiny_tokenizer, write_rows

HEADS, GROUPS, WIDTH = 4, 2, 64


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LUTHIER_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=2)


def write_gguf(path: Path, model: Any, pre_tokenizer: str = "smollm", parts: int = 0, layers: int = 2) -> Path:
    """A tiny Llama as llama.cpp's converter writes it: float32, queries and keys with their halves interleaved.

    Args:
        parts: files that its metadata say the model is in; 0: nothing said. layers: how many are written.
    """
    config = model.config
    tokenizer = tiny_tokenizer()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    if parts:
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_NO, 0)
        writer.add_uint16(gguf.Keys.Split.LLM_KV_SPLIT_COUNT, parts)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(GROUPS)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(len(tokenizer))
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    words = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)  # type: ignore[arg-type]
    special = {token["content"] for token in state["added_tokens"]}
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer)
    writer.add_token_list(words)
    writer.add_token_types([gguf.TokenType.CONTROL if word in special else gguf.TokenType.NORMAL for word in words])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.pad_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    writer.add_chat_template(tokenizer.chat_template)

    def put(name: str, weight: torch.Tensor, heads: int = 0) -> None:
        values = weight.detach().numpy().astype(np.float32)
        if heads:
            values = values.reshape(heads, 2, -1, values.shape[-1]).swapaxes(1, 2).reshape(values.shape)
        writer.add_tensor(name, np.ascontiguousarray(values))

    put("token_embd.weight", model.model.embed_tokens.weight)
    put("output_norm.weight", model.model.norm.weight)
    put("output.weight", model.lm_head.weight)
    for index, layer in enumerate(model.model.layers[:layers]):
        attention, mlp = layer.self_attn, layer.mlp
        put(f"blk.{index}.attn_q.weight", attention.q_proj.weight, HEADS)
        put(f"blk.{index}.attn_k.weight", attention.k_proj.weight, GROUPS)
        put(f"blk.{index}.attn_v.weight", attention.v_proj.weight)
        put(f"blk.{index}.attn_output.weight", attention.o_proj.weight)
        put(f"blk.{index}.ffn_gate.weight", mlp.gate_proj.weight)
        put(f"blk.{index}.ffn_up.weight", mlp.up_proj.weight)
        put(f"blk.{index}.ffn_down.weight", mlp.down_proj.weight)
        put(f"blk.{index}.attn_norm.weight", layer.input_layernorm.weight)
        put(f"blk.{index}.ffn_norm.weight", layer.post_attention_layernorm.weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model.eval()(input_ids=torch.arange(3, 40)[None]).logits
    return found


def test_a_file_and_a_folder_with_one_are_the_model(
    model: Any, tmp_path: Path, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model)
    source = loading.find(ModelConfig(name=str(file)))
    assert source.base.parent == home / "models"
    assert torch.allclose(logits(loading.load(source, torch.float32)), logits(model), atol=1e-5)
    text = "the quick fox, 12 bells<|im_end|>"
    assert loading.tokenizer_at(source.tokenizer).decode(loading.tokenizer_at(source.tokenizer)(text).input_ids) == text
    assert "converted once" in capsys.readouterr().err
    assert fetch_model(str(file)) == source.base
    with pytest.raises(HubError, match="revision=v1 has no effect"):
        resolve(ModelConfig(name=str(file), revision="v1"))
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "tiny.gguf").symlink_to(file)
    (tmp_path / "folder" / "README.md").write_text("a model")
    assert loading.find(ModelConfig(name=str(tmp_path / "folder"))).base.parent == home / "models"
    assert loading.find(ModelConfig(name=str(file))).base == source.base
    assert capsys.readouterr().err.count("converted once") == 1, "only for the link, which is another place"
    (tmp_path / "folder" / "other.gguf").symlink_to(file)
    with pytest.raises(ModelError, match=r"2 GGUF files: other\.gguf, tiny\.gguf"):
        resolve(ModelConfig(name=str(tmp_path / "folder")))


def test_an_adapter_trains_on_it_and_loads_in_peft(model: Any, tmp_path: Path) -> None:
    from peft import AutoPeftModelForCausalLM

    file = write_gguf(tmp_path / "tiny.gguf", model)
    config = config_for(file, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", max_steps=2)
    config["model"] = {"name": str(file), "quantization": "nf4"}
    luthier.train(config)
    config = {**config, "model": str(file), "output_dir": str(tmp_path / "plain")}
    luthier.train(config)
    trained = loading.load(loading.find(ModelConfig(name=str(tmp_path / "plain"))), torch.float32)
    assert torch.equal(logits(AutoPeftModelForCausalLM.from_pretrained(tmp_path / "plain" / "final")), logits(trained))


def test_a_file_that_would_be_tokenized_wrongly_is_refused(model: Any, tmp_path: Path, home: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", model, pre_tokenizer="tekken")
    with pytest.raises(ModelError, match="splits text by the rule 'tekken'"):
        resolve(ModelConfig(name=str(file)))
    (tmp_path / "broken.gguf").write_bytes(b"GGUF and no more")
    with pytest.raises(ModelError, match="is no GGUF file"):
        resolve(ModelConfig(name=str(tmp_path / "broken.gguf")))
    assert not [path for path in (home / "models").iterdir() if path.is_dir()], "nothing half made is left"


def test_a_file_that_lacks_tensors_is_refused(model: Any, tmp_path: Path, home: Path) -> None:
    """transformers would fill what is missing with random numbers, and the folder that is kept would look whole."""
    lacking = write_gguf(tmp_path / "lacking.gguf", model, layers=1)
    with pytest.raises(ModelError, match=r"lacks 9 of LlamaForCausalLM's tensors: model\.layers\.1\."):
        resolve(ModelConfig(name=str(lacking)))
    (tmp_path / "parts").mkdir()
    first = write_gguf(tmp_path / "parts" / "tiny-00001-of-00002.gguf", model, parts=2, layers=1)
    with pytest.raises(ModelError, match=r"(?s)is part 1 of a model in 2 files.*--merge"):
        resolve(ModelConfig(name=str(first)))
    (first.parent / "tiny-00002-of-00002.gguf").write_bytes(b"")
    with pytest.raises(ModelError, match=r"(?s)holds a model in 2 GGUF files: .*--merge"):
        resolve(ModelConfig(name=str(first.parent)))
    assert not [path for path in (home / "models").iterdir() if path.is_dir()], "nothing half made is left"
    whole = write_gguf(tmp_path / "whole.gguf", model, parts=1)
    assert torch.allclose(
        logits(loading.load(loading.find(ModelConfig(name=str(whole))), torch.float32)), logits(model), atol=1e-5
    )


def test_a_file_on_a_hub_is_fetched_alone(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(self: Any, request: Any) -> Path:
        asked.append((request.name, request.include))
        folder = tmp_path / "snapshot"
        if not folder.exists():
            (folder / "q").mkdir(parents=True)
            write_gguf(folder / "q" / "tiny.gguf", model)
        return folder

    monkeypatch.setattr(huggingface.HuggingFace, "fetch", fetch)
    source = loading.find(ModelConfig(name="maker/tiny-GGUF/q/tiny.gguf"))
    assert asked == [("maker/tiny-GGUF", ("q/tiny.gguf",))]
    assert source.base_name == str(source.base), "plain peft has no use for a GGUF's name"
    assert fetch_model("maker/tiny-GGUF/q/tiny.gguf", jobs=2) == source.base and asked[1] == asked[0]
    for setting in ({"to": tmp_path / "to"}, {"include": ["*"]}):
        with pytest.raises(HubError, match=r"no effect on 'maker/tiny-GGUF/q/tiny\.gguf'.* converted once"):
            fetch_model("maker/tiny-GGUF/q/tiny.gguf", **setting)
    with pytest.raises(HubError, match=r"there is no GGUF file './maker/tiny.gguf'"):
        resolve(ModelConfig(name="./maker/tiny.gguf"))
