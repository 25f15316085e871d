"""A model with Python code of its own, by its hub id: the code comes along, and runs with trust_remote_code alone."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import transformers.dynamic_module_utils

from luthier.config.schema import ModelConfig
from luthier.foundation.errors import ModelError
from luthier.model import hub as module
from luthier.model.finding import find
from luthier.model.hub import ITS_OWN_CODE, WANTED
from luthier.model.loading import config_of, skeleton
from tests.model.hubs.stand_in_hub import Repository, StandInHub
from tests.tiny import tiny_tokenizer

CODE = """from pathlib import Path
from transformers import LlamaConfig, LlamaForCausalLM
Path({marker!r}).touch()
class MyConfig(LlamaConfig):
    model_type = "mine"
class MyModel(LlamaForCausalLM):
    config_class = MyConfig
"""


@pytest.mark.parametrize("from_scratch", [False, True])
def test_code_is_fetched_and_run_with_the_flag_alone(
    from_scratch: bool, hub: StandInHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    tiny_tokenizer().save_pretrained(tmp_path / "tokenizer")
    files = {path.name: path.read_bytes() for path in (tmp_path / "tokenizer").iterdir()}
    classes = {"AutoConfig": "mine.MyConfig", "AutoModelForCausalLM": "mine.MyModel"}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {"model_type": "mine", "auto_map": classes, "vocab_size": 300, **sizes}
    files |= {"config.json": json.dumps(settings).encode(), "qwen.tiktoken": b"IQ== 0\n"}
    files |= {"mine.py": CODE.format(marker=str(tmp_path / "ran")).encode()}
    weights = hub.repositories["tiny/model"].files["model.safetensors"]
    hub.repositories["tiny/own"] = Repository(files if from_scratch else {**files, "model.safetensors": weights})
    source = find(ModelConfig(name="tiny/own", endpoint=hub.address, from_scratch=from_scratch))
    assert (source.base / "qwen.tiktoken").is_file()
    with pytest.raises(ModelError, match="then add --trust-remote-code"):
        config_of(source)
    assert not (tmp_path / "ran").exists()
    model = skeleton(config_of(source, trust_remote_code=True), trust_remote_code=True)
    assert type(model).__name__ == "MyModel" and (tmp_path / "ran").exists()


def test_a_snapshot_from_before_code_was_fetched_serves_without_the_hub(
    hub: StandInHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = hub.repositories["tiny/model"].files
    hub.repositories["tiny/own"] = Repository({**files, "modeling_mine.py": b"raise SystemExit"})
    model = ModelConfig(name="tiny/own", endpoint=hub.address)
    with monkeypatch.context() as patch:
        patch.setattr(module, "WANTED", tuple(name for name in WANTED if name not in ITS_OWN_CODE))
        before = find(model).base
    assert not (before / "modeling_mine.py").exists()
    with monkeypatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        assert find(model).base == before
    assert (find(model).base / "modeling_mine.py").is_file()  # completed when the hub answers
