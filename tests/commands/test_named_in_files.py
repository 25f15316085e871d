"""Files that came with a model, a run or an evaluation may name modules: none is imported, since its code would run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from luthier.cli import main
from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.reading import answers_with_labels
from luthier.config.schema import ModelConfig
from luthier.data.records import Labelled, Origin
from luthier.evaluation.comparison import compare
from luthier.evaluation.statistics import Drawing
from luthier.foundation.errors import ConfigError, ModelError, UserError
from luthier.model.finding import find
from tests.classify import write_json_lines
from tests.model.hubs.conftest import safetensors_bytes

FEW = Drawing(resamples=99)


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The dotted name of a module in the current folder that leaves a file named `ran` where it is imported."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    package = f"stranger_{tmp_path.name}"
    (tmp_path / package).mkdir()
    source = 'import pathlib\n\npathlib.Path("ran").touch()\nfrom luthier.metrics.exact_match import *\n'
    (tmp_path / package / "code.py").write_text(source)
    return f"{package}.code"


def test_an_adapters_base_is_of_a_known_source(stranger: str, tmp_path: Path) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_model.safetensors").write_bytes(safetensors_bytes(256))
    named = {"base_model_name_or_path": f"{stranger}:x", "peft_type": "LORA"}
    (adapter / "adapter_config.json").write_text(json.dumps(named))
    with pytest.raises(ModelError, match=r"no model source of luthier's \(huggingface, local") as told:
        find(ModelConfig(name="adapter"))
    assert stranger in told.value.problem and "base_model_name_or_path" in told.value.remedy
    assert not Path("ran").exists()


def test_of_a_runs_config_only_a_stage_of_luthiers_is_read(stranger: str, tmp_path: Path) -> None:
    def asks(stage: object) -> bool:
        config = {"stage": stage, "method": stranger, "training": {"engine": stranger, "optim": stranger}}
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(config))
        records = [[Labelled(text="a", label="b", origin=Origin("rows.jsonl", 1))]]
        return answers_with_labels(ModelConfig(name="run"), records)

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text("{}")
    stage = {"name": "classification", "head": "generative", "metrics": [stranger]}
    assert asks(stage)
    assert not asks({**stage, "head": "classifier"}) and not asks("sft")
    with pytest.raises(UserError, match="none of luthier's") as told:
        asks({**stage, "name": stranger})
    assert "--generate" in told.value.remedy
    with pytest.raises(ConfigError, match=r"stage\.labels"):
        asks({**stage, "labels": 3})
    assert not Path("ran").exists()


def test_a_comparison_imports_what_its_command_names(
    stranger: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"index": n, "prediction": "same", "label": "same" if n % 2 else "other"} for n in range(6)]
    answers = write_json_lines(tmp_path / "answers.jsonl", rows)
    out = tmp_path / "own.json"
    asked = Asked(predictions=answers, metrics=[{"name": "exact_match"}, {"name": "chrf"}], how=FEW, out=out)
    evaluate(None, [], asked)
    saved = json.loads(out.read_text())
    saved["metrics"]["exact_match"]["metric"]["name"] = stranger
    out.write_text(json.dumps(saved))
    found = compare([out, out], FEW, lambda line: None)
    assert [metric.name for metric in found.metrics] == ["chrf"]
    assert found.remarks[0].endswith(f"name it with --metric {stranger}") and not Path("ran").exists()
    arguments = ["evaluate", "--compare", str(out), str(out), "--resamples", "99", "--json", "--metric"]
    assert main([*arguments, stranger]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(said["metrics"]) == ["exact_match"] and not said["remarks"] and Path("ran").exists()
    assert main([*arguments, "bleu"]) == 2
    assert f"has no bleu.\nName of its metrics: {stranger}, chrf." in capsys.readouterr().err
