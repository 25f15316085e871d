"""The engine `vllm` against a stand-in for the package: what it is asked, and what becomes of its answers. No GPU is at hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from luthier.commands.predict import predict
from luthier.config.generation_section import GenerationSettings
from luthier.config.schema import ModelConfig
from luthier.evaluation.engine import Opening
from luthier.evaluation.engines.vllm import Options, VllmEngine
from luthier.foundation.errors import MissingExtraError, UserError


def stand_in(asked: dict[str, Any]) -> ModuleType:
    module: Any = ModuleType("vllm")

    class LLM:
        def __init__(self, model: str, **settings: Any) -> None:
            asked.update(model=model, settings=settings, calls=[])

        def generate(self, prompts: list[Any], parameters: list[Any], **more: Any) -> list[Any]:
            asked["calls"].append((prompts, parameters, more))
            answer = SimpleNamespace(text="fine", token_ids=[5, 6], finish_reason="length")
            return [SimpleNamespace(outputs=[answer]) for _ in prompts]

    module.LLM, module.SamplingParams = LLM, lambda **values: values
    return module


def test_prompts_go_in_as_tokens_and_rows_come_out(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "vllm", stand_in(asked))
    how = GenerationSettings(do_sample=True, top_p=0.9, num_return_sequences=2, max_new_tokens=9, stop_strings=[";"])
    out = tmp_path / "out.jsonl"
    predict(str(tiny_llama), [str(rows)], out, how, engine={"name": "vllm", "tensor_parallel_size": 2})
    assert asked["model"] == str(tiny_llama) and asked["settings"]["tensor_parallel_size"] == 2
    assert asked["settings"]["dtype"] == "auto"
    ((prompts, parameters, _),) = asked["calls"]
    assert len(prompts) == 48 and all(isinstance(ids, list) for ids in (p["prompt_token_ids"] for p in prompts))
    assert len({values["seed"] for values in parameters}) == 48
    assert parameters[0] | {"seed": 0} == {
        "max_tokens": 9, "temperature": 1.0, "top_p": 0.9, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0, "seed": 0,
        "stop": [";"], "stop_token_ids": [2],
    }  # fmt: skip
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["index"] for line in lines] == list(range(24))
    assert lines[0]["samples"] == [{"prediction": "fine", "finish_reason": "length", "tokens": 2}] * 2


def test_precision_is_that_which_was_asked_for_and_which_the_identity_names(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}
    monkeypatch.setitem(sys.modules, "vllm", stand_in(asked))
    model = ModelConfig(name=str(tiny_llama), dtype="bfloat16")
    predict(model, [str(rows)], tmp_path / "out.jsonl", engine="vllm")
    assert asked["settings"]["dtype"] == "bfloat16"
    assert VllmEngine(Options(), Opening(model)).identity()["dtype"] == "torch.bfloat16"


def test_without_the_package_or_with_what_it_can_not_do(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(MissingExtraError, match=r"luthier\[vllm\]"):
        predict(str(tiny_llama), [str(rows)], tmp_path / "out.jsonl", engine="vllm")
    monkeypatch.setitem(sys.modules, "vllm", stand_in({}))
    with pytest.raises(UserError, match="can't do num_beams"):
        predict(str(tiny_llama), [str(rows)], tmp_path / "o.jsonl", GenerationSettings(num_beams=2), engine="vllm")
