"""A run that must be over by a moment."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import TrainerControl, TrainerState

from luthier.commands.train import train
from luthier.foundation.errors import UserError
from luthier.training.deadline import Deadline, time_was_up
from tests.tiny import config_for, write_rows
from tests.training.whole_runs import traces


@pytest.mark.parametrize(
    "often",
    [
        {"eval_strategy": "epoch", "save_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps", "save_steps": 50},
    ],
)
def test_it_stops_after_a_step_with_an_evaluation_and_a_checkpoint(
    often: dict[str, Any], tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.training.metrics_log.plot_losses", lambda *arguments: None)
    config = config_for(tiny_llama, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", **often)
    config["data"]["validation"] = 4
    deadline = Deadline(time.monotonic(), 1.0, 1, 0.0)
    result = train(config, callbacks=[deadline])
    assert result.steps == deadline.stopped_after == 1
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == [1]
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000001"]
    assert (tmp_path / "run" / "final" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("strategy", ["steps", "epoch"])
def test_with_more_time_the_run_goes_on_to_the_same_bits(
    strategy: str, tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ended by the clock in the middle of an epoch, twice, then given all the time: as if it had never been stopped."""
    monkeypatch.setattr("luthier.training.metrics_log.plot_losses", lambda *arguments: None)
    rows = write_rows(tmp_path / "rows.jsonl")

    def config(name: str) -> dict[str, Any]:
        often = {"eval_strategy": strategy, "save_strategy": strategy, "lr_scheduler_type": "cosine"}
        often |= {"eval_steps": 3, "save_steps": 3} if strategy == "steps" else {}
        found = config_for(tiny_llama, rows, tmp_path / name, max_steps=-1, num_train_epochs=2, **often)
        found["data"]["validation"] = 4
        found["method"]["dropout"] = 0.1
        return found

    whole = train(config("whole"))
    assert whole.steps > 4
    for steps in (1, 2):
        deadline = Deadline(time.monotonic(), 1.0, 1, 0.0)
        result = train(config("run"), resume=True, callbacks=[deadline])
        assert result.steps == deadline.stopped_after == steps
    capsys.readouterr()
    last = train(config("run"), resume=True)
    assert last.steps == whole.steps
    told = capsys.readouterr().err
    assert f"The run's time was up after step 2: it goes on to step {whole.steps}, at the learning rates" in told
    assert "nothing is left to do" not in told
    runs = (traces(tmp_path / "whole"), traces(tmp_path / "run"))
    for key in ("weights", "optimizer", "optimizer_rest", "step"):
        assert runs[0][key] == runs[1][key], key
    assert train(config("run"), resume=True).steps == whole.steps
    assert "is finished: nothing is left to do" in capsys.readouterr().err


def test_without_a_checkpoint_there_is_no_going_on(tiny_llama: Path, tmp_path: Path) -> None:
    config = config_for(tiny_llama, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", save_strategy="no")
    assert train(config, callbacks=[Deadline(time.monotonic(), 1.0, 1, 0.0)]).steps == 1
    with pytest.raises(UserError, match="without checkpoints, so there is nothing to go on from") as caught:
        train(config, resume=True)
    assert "start anew with --overwrite (overwrite=True in Python)" in caught.value.remedy


def test_who_else_stops_a_run_has_the_last_word() -> None:
    """Early stopping at the moment at which time is up: there is nothing to go on with."""
    deadline = Deadline(0.0, 0.0, 0, 0.0)
    control, state = TrainerControl(should_training_stop=True), TrainerState(max_steps=9, global_step=1)
    deadline.on_step_begin(None, state, control)
    deadline.on_step_end(None, state, control)
    assert deadline.stopped_after is None
    assert not time_was_up({"stateful_callbacks": {"Deadline": deadline.state()}}, 1)


def test_the_evaluation_at_the_end_of_the_time_may_end_patience(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """No evaluation is a hundred better than the one before it: the first is the best, the second ends patience."""
    monkeypatch.setattr("luthier.training.metrics_log.plot_losses", lambda *arguments: None)
    often: dict[str, Any] = {"eval_strategy": "steps", "eval_steps": 50, "save_strategy": "steps", "save_steps": 50}
    often |= {"load_best_model_at_end": True, "early_stopping_patience": 1, "early_stopping_threshold": 100.0}
    config = config_for(tiny_llama, write_rows(tmp_path / "rows.jsonl"), tmp_path / "run", **often)
    config["data"]["validation"] = 4
    for steps in (1, 2):
        deadline = Deadline(time.monotonic(), 1.0, 1, 0.0)
        assert train(config, resume=steps > 1, callbacks=[deadline]).steps == deadline.stopped_after == steps
    final = tmp_path / "run" / "final"
    before = {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in final.iterdir()}
    for _ in range(2):  # ended by both, it is a finished run, whose model nobody touches
        capsys.readouterr()
        assert train(config, resume=True).steps == 2
        assert "is finished: nothing is left to do" in capsys.readouterr().err
        assert before == {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in final.iterdir()}
    shutil.rmtree(final)  # as a kill between the last checkpoint and the model leaves it
    assert train(config, resume=True).steps == 2
    assert "stopped by a callback after step 2: nothing is left to do" in capsys.readouterr().err
    assert (final / "adapter_model.safetensors").is_file()


def test_a_resumed_run_knows_how_long_evaluations_took() -> None:
    deadline = Deadline(100.0, None, 1, 0.0)
    history = [{"loss": 1.0, "step": 1}, {"eval_loss": 1.0, "eval_runtime": 7.5, "step": 1}]
    deadline.on_train_begin(None, TrainerState(max_steps=48, num_train_epochs=2, log_history=history), None)
    assert deadline._evaluation == 7.5 and deadline.scoring_steps == 2.0


def steps_of_ten_seconds(
    monkeypatch: pytest.MonkeyPatch, deadline: Deadline, began: float, evaluation_after: int | None = None
) -> TrainerControl:
    """Train until the deadline stops it; one evaluation takes 40 seconds."""
    now = [began]
    monkeypatch.setattr("luthier.training.deadline.time.monotonic", lambda: now[0])
    state, control = TrainerState(max_steps=20), TrainerControl()

    class Arguments:
        eval_strategy, save_strategy = "steps", "no"

    while not control.should_training_stop:
        deadline.on_step_begin(Arguments(), state, control)
        now[0] += 10
        state.global_step += 1
        control.should_evaluate = state.global_step == evaluation_after
        deadline.on_step_end(Arguments(), state, control)
        now[0] += 40 if control.should_evaluate and not control.should_training_stop else 0
    return control


def test_it_leaves_time_for_what_comes_after(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scoring takes as long as half of a step, writing 3 seconds: 50 seconds have room for four steps."""
    deadline = Deadline(150.0, 0.5, 1, 3.0)
    control = steps_of_ten_seconds(monkeypatch, deadline, began=100.0)
    # a fourth would end at 140, and what follows at 148; a fifth at 158
    assert deadline.stopped_after == 4
    assert control.should_evaluate and not control.should_save


def test_an_evaluation_that_took_longer_than_thought_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """An evaluation after the second step, thought to take 5 seconds."""
    deadline = Deadline(130.0, 0.5, 1, 0.0)
    steps_of_ten_seconds(monkeypatch, deadline, began=0.0, evaluation_after=2)
    # the third ends at 70; a fourth at 80, and the evaluation after it at 120; a fifth would be over at 130, a sixth at 140
    assert deadline.stopped_after == 5


def test_evaluations_at_the_ends_of_epochs_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """Epochs of three steps of 10 seconds, each followed by an evaluation of 40, which was thought to take 5."""
    now = [0.0]
    monkeypatch.setattr("luthier.training.deadline.time.monotonic", lambda: now[0])
    deadline, state, control = Deadline(175.0, 0.5, 1, 0.0), TrainerState(max_steps=30), TrainerControl()

    class Arguments:
        eval_strategy, save_strategy = "epoch", "epoch"

    while not control.should_training_stop:
        deadline.on_step_begin(Arguments(), state, control)
        now[0] += 10
        state.global_step += 1
        state.epoch = state.global_step / 3
        deadline.on_step_end(Arguments(), state, control)
        if state.global_step % 3 == 0 and not control.should_training_stop:
            control.should_evaluate = True
            deadline.on_epoch_end(Arguments(), state, control)
            control.should_evaluate = False
            now[0] += 40
    # the sixth step ends at 100; its epoch's evaluation, a seventh step and one more evaluation would be over at 190
    assert deadline.stopped_after == 6
    assert not control.should_evaluate  # the epoch's end asks for it


def test_the_first_rank_alone_looks_at_the_clock() -> None:
    for first in (True, False):
        deadline, control = Deadline(0.0, 0.0, 0, 0.0), TrainerControl()
        state = TrainerState(max_steps=9, global_step=1, is_world_process_zero=first)
        deadline.on_step_begin(None, state, control)
        deadline.on_step_end(SimpleNamespace(eval_strategy="no", save_strategy="no"), state, control)
        assert (deadline.stopped_after, control.should_training_stop) == ((1, True) if first else (None, False))


def test_the_last_step_is_no_early_stop() -> None:
    deadline = Deadline(0.0, 0.0, 0, 0.0)
    control = TrainerControl()
    state = TrainerState(max_steps=1, global_step=1)
    deadline.on_step_begin(None, state, control)
    deadline.on_step_end(None, state, control)
    assert deadline.stopped_after is None and not control.should_training_stop
