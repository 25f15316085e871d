"""A run with label words learnt to answer its own question: its model is not asked the bare texts of labelled rows."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.predict import predict
from luthier.commands.reading import answers_with_labels
from luthier.config.generation_section import GenerationSettings
from luthier.config.model_section import ModelConfig
from luthier.data.records import Labelled, Origin
from luthier.foundation.errors import ConfigError, UserError
from tests.classify import labelled_rows, write_json_lines

SHORT = GenerationSettings(max_new_tokens=4)
STAGE = {"name": "classification", "head": "generative", "prompt": "Good? {text}"}
AS_QUESTIONS = {"format": "alpaca", "columns": {"instruction": "text", "output": "label"}}


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return write_json_lines(tmp_path / "rows.jsonl", labelled_rows(6))


def run_with(stage: dict[str, Any], model: Path, folder: Path) -> str:
    """A run's folder as far as it is read here."""
    shutil.copytree(model, folder / "final")
    (folder / "run.json").write_text(json.dumps({"labels": ["bad", "good"]}))
    (folder / "config.yaml").write_text(yaml.safe_dump({"stage": stage}))
    return str(folder / "final")


def test_bare_texts_are_refused_and_what_is_named_instead_works(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    model, out = run_with(STAGE, tiny_llama, tmp_path / "run"), tmp_path / "out.jsonl"
    with pytest.raises(UserError) as refused:
        predict(model, [str(data)], out, SHORT)
    assert "learnt to answer a question about each text" in refused.value.problem and f"{data}" in refused.value.problem
    with pytest.raises(UserError, match="would be asked the bare texts"):
        evaluate(model, [str(data)], Asked(generate=True, generation=SHORT, how=None))
    assert not list(tmp_path.glob("out*"))

    found = evaluate(model, [str(data)], Asked(how=None, out=tmp_path / "labels.json"))
    assert found.task == "single_label" and all({"label", "predicted"} <= row.keys() for row in found.rows)
    predict(model, [{"path": str(data), **AS_QUESTIONS}], out, SHORT, keep_prompts=True)
    first, row = json.loads(out.read_text().splitlines()[0]), json.loads(data.read_text().splitlines()[0])
    assert first["messages"] == [{"role": "user", "content": row["text"]}] and first["label"] == row["label"]


def test_other_models_are_asked_the_texts(tiny_llama: Path, data: Path, tmp_path: Path) -> None:
    predict(run_with({"name": "sft"}, tiny_llama, tmp_path / "sft"), [str(data)], tmp_path / "sft.jsonl", SHORT)
    own = run_with({**STAGE, "name": "own.stage"}, tiny_llama, tmp_path / "own")
    said: list[str] = []
    predict(own, [str(data)], tmp_path / "own.jsonl", SHORT, say=said.append)
    assert (tmp_path / "sft.jsonl").read_bytes() == (tmp_path / "own.jsonl").read_bytes()
    assert "'own.stage', which is none of luthier's" in said[0] and said[0].endswith("The texts are asked as they are.")
    with pytest.raises(ConfigError, match=r"stage\.prompt"):
        predict(
            run_with({**STAGE, "prompt": 3}, tiny_llama, tmp_path / "bad"), [str(data)], tmp_path / "b.jsonl", SHORT
        )


def test_a_hubs_model_is_not_of_the_run_whose_folder_the_command_stands_in(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(run_with(STAGE, tiny_llama, tmp_path / "run")).parent)
    rows = [(Labelled("x", "a", Origin("rows.jsonl", 1)),)]
    asks = [answers_with_labels(ModelConfig(name=name), rows) for name in ("final", "smollm2-135m", "owner/name")]
    assert asks == [True, False, False]
