"""A killed `luthier predict` goes on: no row twice, none missing, and the same answers as an unbroken run."""

from __future__ import annotations

import fcntl
import json
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from luthier.cli import main
from luthier.commands.evaluate import Asked, evaluate
from luthier.commands.predict import line_of, predict
from luthier.config.generation_section import GenerationSettings
from luthier.config.schema import ModelConfig
from luthier.evaluation.engine import Engine, Opening
from luthier.evaluation.engines.transformers import TransformersEngine
from luthier.evaluation.journal import Journal, open_journal, partial_path
from luthier.foundation.errors import UserError
from luthier.model.placement import Placement
from luthier.training.checkpoints import seal
from tests import warm_python
from tests.tiny import tiny_folder

RUNNER = Path(__file__).with_name("killed_predict.py")
DRAWN = ["--max-new-tokens", "6", "--temperature", "1.5", "--seed", "4"]


def test_killed_twice_and_run_again(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    arguments = [str(tiny_llama), "--data", str(rows), "--out", str(out), *DRAWN]
    kept = []
    for count in (8, 5):  # the first line of a new journal is its head
        killed = warm_python.run(str(RUNNER), str(count), *arguments, outputs=tmp_path)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert not out.exists()
        text = (tmp_path / "out.jsonl.partial").read_text()
        assert not text.endswith("\n")  # it died within a line
        kept.append(len(text.splitlines()) - 2)
    assert kept == [6, 6 + 4]
    assert main(["predict", *arguments, "--json"]) == 0
    captured = capsys.readouterr()
    assert "10 of 24 rows are answered already" in captured.err
    assert json.loads(captured.out.splitlines()[-1])["resumed"] == 10
    assert not (tmp_path / "out.jsonl.partial").exists()
    whole = tmp_path / "whole.jsonl"
    assert main(["predict", str(tiny_llama), "--data", str(rows), "--out", str(whole), *DRAWN]) == 0
    assert out.read_bytes() == whole.read_bytes()


HOW_IT_IS_READ: dict[str, Any] = {
    "quantization": "int8",
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "config_overrides": {"rms_norm_eps": 1e-3},
    "dtype": "bfloat16",
}


@pytest.mark.parametrize("changed", ["data", "generation", "model", "template", "device_map", *HOW_IT_IS_READ])
def test_what_changed_is_named(changed: str, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    out, how = tmp_path / "out.jsonl", GenerationSettings(max_new_tokens=6)
    arguments = [str(tiny_llama), "--data", str(rows), "--out", str(out), "--max-new-tokens", "6"]
    assert warm_python.run(str(RUNNER), "4", *arguments, outputs=tmp_path).returncode == -signal.SIGKILL
    model, template, placement = tiny_llama, "auto", None
    if changed == "data":
        rows.write_text(rows.read_text().replace("fox", "cat"))
    elif changed == "generation":
        how = GenerationSettings(max_new_tokens=7)
    elif changed == "model":
        model = tiny_folder(tmp_path / "other", seed=1, num_hidden_layers=2)
    elif changed == "template":
        template = "chatml"
    elif changed == "device_map":
        placement = Placement({"": "cpu"})
    read = {changed: HOW_IT_IS_READ[changed]} if changed in HOW_IT_IS_READ else {}
    partial = (tmp_path / "out.jsonl.partial").read_bytes()
    with pytest.raises(UserError, match=f"differs from this one in: {changed}") as caught:
        predict(ModelConfig(name=str(model), **read), [str(rows)], out, how, template=template, placement=placement)
    assert "--overwrite" in caught.value.remedy
    assert (tmp_path / "out.jsonl.partial").read_bytes().startswith(partial[: partial.rfind(b"\n") + 1])


def test_a_model_that_was_trained_anew_in_its_place_is_another(rows: Path, tmp_path: Path) -> None:
    """Names, sizes and headers are the same; the hashes with which a run seals its final/ are not."""
    folder, out = tmp_path / "final", tmp_path / "out.jsonl"
    for seed in (0, 1):
        tiny_folder(folder, seed=seed)
        seal(folder, {})
        engine = TransformersEngine(Opening(ModelConfig(name=str(folder))))
        if seed == 0:
            first = engine.source.fingerprint
            with pytest.raises(KeyboardInterrupt), open_journal(out, engine.identity()) as journal:
                journal.add(0, {"index": 0})
                raise KeyboardInterrupt
    assert engine.source.fingerprint == first
    with pytest.raises(UserError, match="differs from this one in: weights"), open_journal(out, engine.identity()):
        pass


@pytest.mark.parametrize("failed", [[], [{"finish_reason": "error"}, {"samples": [{"finish_reason": "error"}]}]])
def test_a_run_that_got_no_answer_holds_no_other_up(failed: list[dict[str, Any]], tmp_path: Path) -> None:
    """With a wrong port, say: the corrected command has nothing to lose by beginning anew."""
    out = tmp_path / "out.jsonl"
    with pytest.raises(KeyboardInterrupt), open_journal(out, {"base_url": "http://localhost:8001/v1"}) as journal:
        for row, line in enumerate(failed):
            journal.add(row, line)
        raise KeyboardInterrupt
    mended = {"base_url": "http://localhost:8000/v1"}
    with pytest.raises(KeyboardInterrupt), open_journal(out, mended) as journal:
        assert not journal.done
        journal.add(0, {"index": 0})
        raise KeyboardInterrupt
    with open_journal(out, mended) as journal:
        assert journal.done == {0: {"index": 0}}


def test_precision_is_that_which_was_asked_for(tiny_llama: Path) -> None:
    opened = TransformersEngine(Opening(ModelConfig(name=str(tiny_llama), dtype="bfloat16"))).open()
    assert opened.model.dtype == torch.bfloat16


@pytest.mark.parametrize("overwrite", [False, True])
def test_two_at_a_time_are_refused(overwrite: bool, tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """Also where the second would start anew: the first one's rows stay, and it ends well."""
    out = tmp_path / "out.jsonl"
    with open_journal(out, {}) as journal:
        journal.add(0, {"index": 0})
        with pytest.raises(UserError, match="another process is writing"):
            predict(str(tiny_llama), [str(rows)], out, overwrite=overwrite)
        journal.add(1, {"index": 1})
    assert [json.loads(line) for line in out.read_text().splitlines()] == [{"index": 0}, {"index": 1}]


def test_a_journal_that_went_between_opening_and_locking_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run ended meanwhile: rows in a file without a name would be lost."""
    out, lock = tmp_path / "out.jsonl", fcntl.flock

    def ends_first(*arguments: Any) -> None:
        partial_path(out).unlink()
        lock(*arguments)

    monkeypatch.setattr(fcntl, "flock", ends_first)
    with pytest.raises(UserError, match="another process is writing"), open_journal(out, {}):
        pass


def test_an_evaluation_that_was_begun_anew_goes_on(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its numbers go with the answers that they are of: while they stood, no command went on."""
    out = tmp_path / "out.json"
    asked = Asked(metrics=["chrf"], generation=GenerationSettings(max_new_tokens=4), how=None, out=out)
    evaluate(str(tiny_llama), [str(rows)], asked)
    before = out.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr("luthier.commands.predict.answer_into", _one_answer_and_killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(str(tiny_llama), [str(rows)], replace(asked, overwrite=True))
    said: list[str] = []
    evaluate(str(tiny_llama), [str(rows)], asked, say=said.append)
    assert "1 of 24 rows are answered already; going on with the others" in said
    assert out.read_bytes() == before


def _one_answer_and_killed(journal: Journal, engine: Engine, prompts: Any, settings: Any, keep_prompts: bool) -> int:
    (answer,) = engine.answers([prompts[0].request], settings)
    journal.add(0, line_of(prompts[0], [answer], keep_prompts))
    raise KeyboardInterrupt


def test_starting_anew_leaves_nothing_of_the_run_before(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("before")
    with pytest.raises(KeyboardInterrupt), open_journal(out, {}, anew=True) as journal:
        journal.add(0, {"index": 0})
        raise KeyboardInterrupt
    assert not out.exists()  # so that the same command without --overwrite goes on
    with open_journal(out, {"of": "another run"}, anew=True) as journal:
        assert not journal.done
    assert out.read_text() == ""
