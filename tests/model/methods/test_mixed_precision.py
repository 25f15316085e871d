"""Over a base in 16 bits what learns in float32 meets frozen layers, without autocast too, and trains as in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import luthier
from tests.classify import bert_folder, classification_config, labelled_rows, write_json_lines
from tests.tiny import config_for, tiny_folder, write_rows

BFLOAT16 = {"dtype": "bfloat16"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("models")
    kinds = {"llama": "llama", "tied": "qwen2", "gpt2": "gpt2"}
    made = {name: tiny_folder(place / name, kind) for name, kind in kinds.items()}
    labelled = write_json_lines(place / "labelled.jsonl", labelled_rows(24))
    return {
        **made,
        "bert": bert_folder(place / "bert"),
        "rows": write_rows(place / "rows.jsonl", 8),
        "labelled": labelled,
    }


def losses(config: dict[str, Any], out: Path, **model: Any) -> list[float]:
    luthier.train({**config, "model": {"name": config["model"], **model}, "output_dir": str(out)})
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", {"modules_to_save": ["lm_head"]}),
        ("llama", {"modules_to_save": ["embed_tokens", "norm"]}),
        ("tied", {"modules_to_save": ["lm_head", "layers.1.mlp"], "target_modules": ["q_proj"]}),
        ("tied", {"modules_to_save": ["self_attn"], "target_modules": ["up_proj"]}),
        ("tied", {"bias": "lora_only"}),
        ("gpt2", {"bias": "all"}),
    ],
)
def test_lora_that_trains_modules_whole(
    kind: str, method: dict[str, Any], folders: dict[str, Path], tmp_path: Path
) -> None:
    settings = {"max_steps": 3, "save_strategy": "no", "learning_rate": 2e-3}
    config = config_for(folders[kind], folders["rows"], tmp_path / "run", **settings)
    config["method"] = {"name": "lora", "rank": 4, **method}
    narrow = losses(config, tmp_path / "narrow", **BFLOAT16)
    assert narrow == pytest.approx(losses(config, tmp_path / "wide", dtype="float32"), rel=0.02)


@pytest.mark.parametrize(
    "method",
    [
        {"name": "lora", "bias": "all"},
        "bitfit",
        {"name": "lora", "modules_to_save": ["lm_head", "ln_f"]},
    ],
    ids=str,
)
def test_norms_under_autocast(method: Any, folders: dict[str, Path], tmp_path: Path) -> None:
    """On a processor autocast leaves LayerNorm as it is, which takes no weight and bias of two precisions."""
    settings = {"max_steps": 2, "save_strategy": "no", "learning_rate": 2e-3, "bf16": True}
    config = config_for(folders["gpt2"], folders["rows"], tmp_path / "run", **settings)
    config["method"] = method
    narrow = losses(config, tmp_path / "narrow", **BFLOAT16)
    assert narrow == pytest.approx(losses(config, tmp_path / "wide", dtype="float32"), rel=0.02)


@pytest.mark.parametrize("method", ["lora", "adapter"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_heads_that_classify(kind: str, method: str, folders: dict[str, Path], tmp_path: Path) -> None:
    settings = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "learning_rate": 1e-3}
    config = classification_config(folders[kind], folders["labelled"], tmp_path, method, **settings)
    narrow = losses(config, tmp_path / "narrow", **BFLOAT16)
    assert narrow == pytest.approx(losses(config, tmp_path / "wide", dtype="float32"), rel=0.05)
