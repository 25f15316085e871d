"""A run that came to its end, resumed: nothing is left to do, wherever its newest checkpoint stands."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import luthier
from luthier.foundation.errors import Interrupted, UserError
from tests.commands.test_run_folders import snapshot
from tests.tiny import config_for


def left_alone(config: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> luthier.TrainResult:
    """Resume a run that is finished: every file stays as it is."""
    folder = Path(config["output_dir"])
    before = snapshot(folder)
    capsys.readouterr()
    result = luthier.train(config, resume=True)
    assert "is finished: nothing is left to do" in capsys.readouterr().err
    assert {name: data for name, data in snapshot(folder).items() if name != ".lock"} == before
    return result


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoints/step-*"))


def test_a_finished_run_resumed_keeps_its_results(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run")
    first = luthier.train(config)
    again = luthier.train(config, resume=True)
    assert again.train_loss == pytest.approx(first.train_loss)
    assert again.steps == first.steps


def test_a_finished_run_is_left_alone(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=4)
    first = luthier.train(config)
    again = left_alone(config, capsys)
    assert again.as_dict() == first.as_dict()
    assert again.history == first.history


@pytest.mark.parametrize(("save_steps", "kept"), [(3, ["step-00000003"]), (100, [])])
def test_early_stopping_between_two_checkpoints(
    save_steps: int, kept: list[str], tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The loss falls where it should grow: the second evaluation, after step 4, ends the run."""
    config = config_for(
        tiny_llama, rows, tmp_path / "run", eval_strategy="steps", eval_steps=2, save_steps=save_steps,
        greater_is_better=True, early_stopping_patience=1,
    )  # fmt: skip
    config["data"]["validation"] = 4
    first = luthier.train(config)
    assert first.steps == 4 and checkpoints(tmp_path / "run") == kept
    again = left_alone(config, capsys)
    assert again.as_dict() == first.as_dict()
    assert again.history == first.history


class InterruptAtTwo(TrainerCallback):
    """Ctrl-C in the midst of step 2."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)


def test_a_checkpoint_of_an_interruption_alone(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = config_for(
        tiny_llama, rows, tmp_path / "run", save_strategy="no", max_steps=4, callbacks=[f"{__name__}.InterruptAtTwo"]
    )
    with pytest.raises(Interrupted):
        luthier.train(config)
    assert luthier.train(config, resume=True).steps == 4
    assert checkpoints(tmp_path / "run") == ["step-00000002"]
    left_alone(config, capsys)
    (tmp_path / "run" / "final" / "README.md").unlink()  # what is not whole is made anew
    assert luthier.train(config, resume=True).steps == 4
    assert "Going on from step-00000002" in capsys.readouterr().err
    left_alone(config, capsys)


def test_a_finished_run_without_checkpoints(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is never started over: with something left to do it is refused."""
    config = config_for(tiny_llama, rows, tmp_path / "run", save_strategy="no", max_steps=3)
    luthier.train(config)
    left_alone(config, capsys)
    before = snapshot(tmp_path / "run")
    longer = {**config, "training": {**config["training"], "max_steps": 5}}
    with pytest.raises(UserError, match=r"nothing to go on from: the config changed: training\.max_steps: 3 -> 5\."):
        luthier.train(longer, resume=True)
    assert "the run goes on" not in capsys.readouterr().err
    assert {name: data for name, data in snapshot(tmp_path / "run").items() if name != ".lock"} == before
    (tmp_path / "run" / "final" / "README.md").unlink()
    with pytest.raises(UserError, match="nothing to go on from: its files are not as the run left them"):
        luthier.train(config, resume=True)
    run_file = tmp_path / "run" / "run.json"
    run_file.write_text(run_file.read_text().replace('"finished"', '"failed"'))
    with pytest.raises(UserError, match="nothing to go on from: its training came to the end and final/ is whole"):
        luthier.train(config, resume=True)
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").exists()
