"""Killed at any moment and resumed, a run ends with the same bits; damaged checkpoints are passed over, said aloud."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from datetime import date, datetime
from pathlib import Path
from typing import Any

import pytest

import luthier
from luthier.commands import run_folder
from luthier.config.loading import dump, load
from luthier.foundation.errors import CheckpointError, Interrupted, TrainingError, UserError
from luthier.training.callbacks import chosen_by, is_still_chosen_by
from luthier.training.checkpoints import find_fault
from luthier.training.exhaustion import memory_explained
from tests.tiny import CHATML, config_for, tiny_folder
from tests.training.whole_runs import launch, traces


def settings(tiny_llama: Path, rows: Path, out: Path, **training: Any) -> dict[str, Any]:
    """A run with everything that has a state: dropout, a schedule, evaluation, early stopping, lines over several steps."""
    defaults: dict[str, Any] = {
        "max_steps": 14, "save_steps": 3, "logging_steps": 2, "eval_strategy": "steps", "eval_steps": 4, "lr_scheduler_type": "cosine",
        "warmup_steps": 2, "weight_decay": 0.01, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 2,
        "early_stopping_patience": 50, "save_total_limit": 2,
    }  # fmt: skip
    config = config_for(tiny_llama, rows, out, **{**defaults, **training})
    config["method"]["dropout"] = 0.1
    config["data"]["validation"] = 4
    return config


@pytest.fixture(scope="module")
def module_rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import write_rows

    return write_rows(tmp_path_factory.mktemp("rows") / "rows.jsonl")


@pytest.fixture(scope="module")
def unbroken(tiny_llama: Path, module_rows: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """In this process: what is compared with it runs in another."""
    folder = tmp_path_factory.mktemp("unbroken")
    luthier.train(settings(tiny_llama, module_rows, folder / "run"))
    return traces(folder / "run")


@pytest.mark.parametrize("moment", ["step:5", "writing:2", "renamed:3"])
def test_killed_and_resumed_ends_with_the_same_bits(
    moment: str, unbroken: dict[str, Any], tiny_llama: Path, module_rows: Path, tmp_path: Path
) -> None:
    config = settings(tiny_llama, module_rows, tmp_path / "run")
    killed = launch(config, tmp_path, "--die-at", moment)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    resumed = launch(config, tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "Going on from step-" in resumed.stderr
    assert traces(tmp_path / "run") == unbroken
    assert not list((tmp_path / "run" / "checkpoints").glob(".*")), "nothing half-written is left behind"


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["step:6", "writing:2", "renamed:2"])
def test_killed_between_epochs(moment: str, tiny_llama: Path, module_rows: Path, tmp_path: Path) -> None:
    """Evaluation and saving at epochs' ends, the best kept: a checkpoint stands after the epoch's events, not before."""
    by_epoch: dict[str, Any] = {
        "max_steps": -1, "num_train_epochs": 3, "save_strategy": "epoch", "eval_strategy": "epoch", "eval_steps": None,
        "load_best_model_at_end": True, "save_total_limit": 1,
    }  # fmt: skip

    def config(out: Path) -> dict[str, Any]:
        made = settings(tiny_llama, module_rows, out, **by_epoch)
        del made["training"]["save_steps"]
        return made

    assert launch(config(tmp_path / "whole"), tmp_path).returncode == 0
    assert launch(config(tmp_path / "run"), tmp_path, "--die-at", moment).returncode == -signal.SIGKILL
    assert launch(config(tmp_path / "run"), tmp_path, "--resume").returncode == 0
    assert traces(tmp_path / "run") == traces(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.timeout(1800)  # on a busy machine, where each run takes many times longer
def test_twenty_kills_at_random_moments(
    unbroken: dict[str, Any], tiny_llama: Path, module_rows: Path, tmp_path: Path
) -> None:
    """Wherever the signal hits: data, weights, steps, writing, renaming, the end."""
    chance = random.Random(11)
    started = time.monotonic()
    assert launch(settings(tiny_llama, module_rows, tmp_path / "timed"), tmp_path).returncode == 0
    whole, kills, finished = time.monotonic() - started, 0, 0
    while kills < 20:
        out = tmp_path / f"run-{finished}"
        config = settings(tiny_llama, module_rows, out)
        done = launch(config, tmp_path, "--resume", kill_after_seconds=chance.uniform(0.05, 1.05) * whole)
        if done.returncode == -signal.SIGKILL:
            kills += 1
            continue
        assert done.returncode == 0, done.stderr
        assert traces(out) == unbroken
        finished += 1
    config = settings(tiny_llama, module_rows, tmp_path / f"run-{finished}")
    assert launch(config, tmp_path, "--resume").returncode == 0
    assert traces(tmp_path / f"run-{finished}") == unbroken


def test_a_sigterm_while_weights_are_read_ends_the_run_noted(
    tiny_llama: Path, module_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import luthier.commands.assembly as assembly

    def reading(*_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)

    monkeypatch.setattr(assembly, "_base_model", reading)
    with pytest.raises(Interrupted, match="stopped before the first step") as stopped:
        luthier.train(settings(tiny_llama, module_rows, tmp_path / "run"))
    assert stopped.value.exit_status == 128 + signal.SIGTERM
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"


@pytest.mark.parametrize(
    ("number", "moment", "step", "evaluated"),
    [
        (signal.SIGINT, "optimizer_step:6", 7, [4]),
        # an evaluation is due in the step: it is left to the run that goes on
        (signal.SIGTERM, "optimizer_step:11", 12, [4, 8]),
        # in the midst of an evaluation: it is the last thing that is done
        (signal.SIGTERM, "prediction_step:8", 8, [4, 8]),
    ],
)
def test_a_signal_finishes_the_step_saves_and_names_the_command(
    number: signal.Signals,
    moment: str,
    step: int,
    evaluated: list[int],
    unbroken: dict[str, Any],
    tiny_llama: Path,
    module_rows: Path,
    tmp_path: Path,
) -> None:
    config = settings(tiny_llama, module_rows, tmp_path / "run")
    config["training"]["callbacks"] = ["tests.training.test_resume.SignalOnce"]
    os.environ["LUTHIER_TEST_SIGNAL"] = f"{moment}:{int(number)}"
    try:
        stopped = launch(config, tmp_path)
    finally:
        del os.environ["LUTHIER_TEST_SIGNAL"]
    assert stopped.returncode == 128 + number, stopped.stderr
    assert f"stopped after step {step} of 14" in stopped.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "eval_loss" in line] == evaluated
    assert f"luthier train {tmp_path / 'config.json'} --resume" in stopped.stderr
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "interrupted"
    resumed = launch(config, tmp_path, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert f"Going on from step-{step:08d}" in resumed.stderr
    assert traces(tmp_path / "run") == unbroken


from transformers import TrainerCallback  # noqa: E402 - after the tests that need no torch


class SignalOnce(TrainerCallback):
    """Sends this process a signal at an event after so many steps: LUTHIER_TEST_SIGNAL=EVENT:STEPS:SIGNAL."""

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._send("optimizer_step", state.global_step)

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._send("prediction_step", state.global_step)

    def _send(self, event: str, step: int) -> None:
        at, _, number = os.environ.get("LUTHIER_TEST_SIGNAL", "").rpartition(":")
        if at == f"{event}:{step}":
            os.kill(os.getpid(), int(number))


class FailAtSeven(TrainerCallback):
    """Fails in the midst of step 7, once."""

    armed = False

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 6 and FailAtSeven.armed:
            FailAtSeven.armed = False
            raise RuntimeError("the power went out")


@pytest.mark.parametrize("streaming", [False, True])
def test_a_run_that_goes_on_another_day_keeps_the_day_of_its_start(
    streaming: bool, module_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a template that writes the date."""

    def it_is(day: int) -> None:
        moment = type("Moment", (datetime,), {"now": classmethod(lambda cls: datetime(2026, 11, day, 9, 30))})
        monkeypatch.setattr("luthier.data.templating.datetime", moment)
        today = type("Today", (date,), {"today": classmethod(lambda cls: date(2026, 11, day))})
        for module in ("luthier.commands.run_folder", "luthier.commands.opening", "luthier.data.fingerprints"):
            monkeypatch.setattr(f"{module}.date", today, raising=False)

    dated = "{{ '<|im_start|>system\nToday is ' + strftime_now('%d %B %Y') + '<|im_end|>\n' }}" + CHATML
    model = tiny_folder(tmp_path / "model", template=dated)

    def config(name: str) -> dict[str, Any]:
        made = settings(model, module_rows, tmp_path / name)
        made["training"]["callbacks"] = ["tests.training.test_resume.FailAtSeven"]
        if streaming:
            made["data"] |= {"streaming": True, "buffer_size": 4, "validation": [str(module_rows)]}
        return made

    it_is(26)
    luthier.train(config("whole"))
    FailAtSeven.armed = True
    with pytest.raises(RuntimeError, match="the power went out"):
        luthier.train(config("run"))
    it_is(27)
    luthier.train(config("run"), resume=True)
    assert traces(tmp_path / "run") == traces(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "run.json").read_text())["day"] == "2026-11-26"


def finished_run(tiny_llama: Path, rows: Path, out: Path, **training: Any) -> dict[str, Any]:
    config = settings(tiny_llama, rows, out, **training)
    luthier.train(config)
    return config


@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing", "manifest"])
def test_a_damaged_newest_checkpoint_is_passed_over(
    damage: str, tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished_run(tiny_llama, rows, tmp_path / "run")
    before = traces(tmp_path / "run")
    older, newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
    weights = newest / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    if damage == "truncated":
        weights.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 1
        weights.write_bytes(data)
    elif damage == "missing":
        weights.unlink()
    else:
        (newest / "manifest.json").write_text("{")
    capsys.readouterr()
    luthier.train(config, resume=True)
    said = capsys.readouterr().err
    assert f"{newest.name} is damaged" in said
    assert f"Going on from {older.name}" in said
    assert traces(tmp_path / "run") == before
    assert not find_fault(newest), "the damaged one was written anew"


def test_no_checkpoint_verifies(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = finished_run(tiny_llama, rows, tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step-*"):
        (path / "optimizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        luthier.train(config, resume=True)


def test_resume_without_a_checkpoint_starts_at_the_beginning(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = settings(tiny_llama, rows, tmp_path / "run")
    luthier.train(config, resume=True)
    assert "starts at the beginning" in capsys.readouterr().err
    first = traces(tmp_path / "run")
    luthier.train(config, overwrite=True)
    assert traces(tmp_path / "run") == first


def test_an_old_checkpoint_goes_only_after_the_new_one_verified(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import luthier.training.checkpoints as checkpoints

    sound = checkpoints.find_fault
    monkeypatch.setattr(
        checkpoints, "find_fault", lambda path: "made up" if path.name == "step-00000009" else sound(path)
    )
    with pytest.raises(CheckpointError, match="does not read back"):
        luthier.train(settings(tiny_llama, rows, tmp_path / "run", save_total_limit=1))
    assert "step-00000006" in [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]


def test_a_longer_schedule_goes_on(
    tiny_llama: Path, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = finished_run(tiny_llama, rows, tmp_path / "run", lr_scheduler_type="constant", warmup_steps=0)
    config["training"]["max_steps"] = 20
    result = luthier.train(config, resume=True)
    assert result.steps == 20
    assert "training.max_steps: 14 -> 20" in capsys.readouterr().err
    longer = settings(tiny_llama, rows, tmp_path / "other", lr_scheduler_type="constant", warmup_steps=0, max_steps=20)
    luthier.train(longer)
    # at 14 the shorter run wrote the line and checkpoint of its end; the weights are those of one run of 20
    assert traces(tmp_path / "run")["weights"] == traces(tmp_path / "other")["weights"]


def test_where_no_step_is_left_the_best_model_is_not_given_up(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """There is no evaluation to come that could be the best by the new direction, and the last weights are not asked for."""
    steps = {"max_steps": 6, "eval_steps": 2, "save_steps": 2, "save_total_limit": None, "load_best_model_at_end": True}
    config = finished_run(tiny_llama, rows, tmp_path / "run", **steps)
    weights = tmp_path / "run" / "final" / "adapter_model.safetensors"
    before = weights.read_bytes()
    config["training"] |= {"greater_is_better": True}
    with pytest.raises(CheckpointError, match=r"counts no longer, since the metric .* no step is left"):
        luthier.train(config, resume=True)
    assert weights.read_bytes() == before


def test_a_best_by_answers_made_otherwise_is_no_longer_the_best(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    def told(**changes: Any) -> dict[str, Any]:
        training = {"predict_with_generate": True, "metric_for_best_model": "edit_distance", "eval_strategy": "steps"}
        metrics = [{"name": "edit_distance", **changes.pop("metric", {})}]
        config = settings(tiny_llama, rows, tmp_path / "run", **training, metrics=metrics)
        return chosen_by(load({**config, **changes}))

    def kept(args: dict[str, Any]) -> dict[str, Any]:
        return {"stateful_callbacks": {"ChosenBy": {"args": args, "attributes": {}}}}

    config = settings(
        tiny_llama, rows, tmp_path / "run", predict_with_generate=True, metric_for_best_model="edit_distance",
        eval_strategy="steps", metrics=["edit_distance"],
    )  # fmt: skip
    now = load(config)
    assert is_still_chosen_by(now, kept(told()))
    assert not is_still_chosen_by(now, kept(told(metric={"normalised": False})))
    assert not is_still_chosen_by(now, kept(told(generation={"max_new_tokens": 7})))
    before = {name: value for name, value in told().items() if name in ("metric_for_best_model", "greater_is_better")}
    assert is_still_chosen_by(now, kept(before)), "a checkpoint of before tells less"


@pytest.mark.parametrize(
    ("first", "then"),
    [({}, {"greater_is_better": True}), ({"greater_is_better": True}, {"load_best_model_at_end": True})],
    ids=["another direction", "weights not kept"],
)
def test_a_best_that_tells_nothing_any_more_is_let_go(
    first: dict[str, Any],
    then: dict[str, Any],
    tiny_llama: Path,
    rows: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The loss falls, so by the greater one the best was that of step 2, which is not saved."""
    steps = {
        "max_steps": 6,
        "eval_steps": 2,
        "save_steps": 4,
        "save_total_limit": None,
        "lr_scheduler_type": "constant",
    }
    config = finished_run(tiny_llama, rows, tmp_path / "run", **steps, warmup_steps=0, **first)
    config["training"] |= {"max_steps": 10, **then}
    result = luthier.train(config, resume=True)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert losses == sorted(losses, reverse=True)
    assert "counts no longer" in capsys.readouterr().err
    assert result.best_metric == losses[3]
    final, best = tmp_path / "run" / "final", tmp_path / "run" / "checkpoints" / "step-00000008"
    same = (final / "adapter_model.safetensors").read_bytes() == (best / "adapter_model.safetensors").read_bytes()
    assert same is ("load_best_model_at_end" in then)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("method", "rank"), 2, "method.rank: 4 -> 2"),
        (("data", "cutoff_length"), 32, "data.cutoff_length: 64 -> 32"),
        (("stage",), "pretrain", "stage.name"),
        (("training", "grouping"), "within_buffer", "training.grouping: within_step -> within_buffer"),
    ],
)
def test_another_run_is_not_gone_on_with(
    place: tuple[str, ...], value: Any, said: str, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    config = finished_run(tiny_llama, rows, tmp_path / "run", prefix_sharing="on")
    target = config
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    with pytest.raises(UserError) as caught:
        luthier.train(config, resume=True)
    assert said in str(caught.value) or "plain text" in str(caught.value)


def test_changed_data_is_not_gone_on_with(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = finished_run(tiny_llama, rows, tmp_path / "run")
    rows.write_text(rows.read_text().replace("fox", "cat"))
    with pytest.raises(UserError, match="data's bytes"):
        luthier.train(config, resume=True)


def test_a_used_folder_is_not_overwritten(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = finished_run(tiny_llama, rows, tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="holds another run") as caught:
        luthier.train(config)
    assert "go on with `luthier.train(config, resume=True)`, or start anew" in caught.value.remedy
    assert "--overwrite (overwrite=True in Python)" in caught.value.remedy
    with pytest.raises(UserError, match="exclude each other"):
        luthier.train(config, resume=True, overwrite=True)
    luthier.train(config, overwrite=True)
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_a_disk_that_fills_up_during_a_checkpoint(tiny_llama: Path, module_rows: Path, tmp_path: Path) -> None:
    """Files may grow to 20 kB: the kernel refuses more, as a full disk does."""
    config = settings(tiny_llama, module_rows, tmp_path / "run")
    done = launch(config, tmp_path, limits={"RLIMIT_FSIZE": 20_000})
    assert done.returncode == 2, done.stderr
    assert "the disk is full: the checkpoint of step 3" in done.stderr
    assert "Traceback" not in done.stderr
    assert not any((tmp_path / "run" / "checkpoints").iterdir()), "nothing half-written is left"


class FillAtFour(TrainerCallback):
    """Takes all the room on the disk after step 4."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 4 and "LUTHIER_TEST_FILL" in os.environ:
            with Path(os.environ["LUTHIER_TEST_FILL"]).open("wb", buffering=0) as stream:
                try:
                    while True:
                        stream.write(bytes(4096))
                except OSError:
                    return


def test_a_real_full_disk(
    unbroken: dict[str, Any], tiny_llama: Path, module_rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file system fills up: the checkpoint before stays whole, and is resumed once there is room."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs rights that this machine does not give")
    try:
        config = settings(tiny_llama, module_rows, disk / "run")
        config["training"]["callbacks"] = ["tests.training.test_resume.FillAtFour"]
        monkeypatch.setenv("LUTHIER_TEST_FILL", str(disk / "filler"))
        full = launch(config, tmp_path)
        assert full.returncode == 2, full.stderr
        assert "the disk is full" in full.stderr
        assert "Traceback" not in full.stderr
        assert [path.name for path in (disk / "run" / "checkpoints").iterdir()] == ["step-00000003"]
        (disk / "filler").unlink()
        monkeypatch.delenv("LUTHIER_TEST_FILL")
        resumed = launch(config, tmp_path, "--resume")
        assert resumed.returncode == 0, resumed.stderr
        assert traces(disk / "run") == unbroken
    finally:
        subprocess.run(["umount", str(disk)], check=False)


def test_too_little_disk_is_refused_before_training(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    from luthier.training.checkpoints import need_space

    said = r"this run's checkpoints and final model take about 2.0 GiB, but only 1.0 MiB are free"
    with pytest.raises(CheckpointError, match=said) as refused:
        need_space(tmp_path, 2 * 1024**3, free=lambda path: 1024**2)
    assert "training.save_total_limit" in refused.value.remedy


class PoisonAtFive(TrainerCallback):
    """Makes a weight not finite before step 6."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            next(p for p in kwargs["model"].parameters() if p.requires_grad).data[0, 0] = float("nan")


def test_a_loss_that_is_not_finite_is_refused(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    config = settings(tiny_llama, rows, tmp_path / "run", callbacks=[f"{__name__}.PoisonAtFive"])
    with pytest.raises(TrainingError) as caught:
        luthier.train(config)
    text = str(caught.value)
    assert "step 6: the loss is nan" in text
    assert "step-00000003 is whole and kept" in text
    assert "rows.jsonl, row" in text
    assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"


class GreedyAtFive(TrainerCallback):
    """Asks for more memory than there is."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 5:
            import torch

            torch.zeros(64 * 1024**3, dtype=torch.uint8)


def test_memory_that_runs_out_names_the_settings_to_change(tiny_llama: Path, module_rows: Path, tmp_path: Path) -> None:
    """The allocation is real; the limit stands for the machine's size."""
    config = settings(tiny_llama, module_rows, tmp_path / "run", callbacks=["tests.training.test_resume.GreedyAtFive"])
    done = launch(config, tmp_path, limits={"RLIMIT_AS": 6 * 1024**3})
    assert done.returncode == 2, done.stderr
    assert "memory ran out" in done.stderr
    assert "step-00000003 is whole and kept" in done.stderr
    assert "training.per_device_train_batch_size=1 training.gradient_accumulation_steps=4" in done.stderr
    assert (
        "training.gradient_checkpointing=true. Or start anew, with --overwrite and data.cutoff_length=32" in done.stderr
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("size", "batches"), [(4, "2 x 6"), (3, "1 x 9"), (5, "1 x 15"), (1, "")])
def test_a_run_takes_the_settings_that_it_is_told_to_go_on_with(
    size: int, batches: str, tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    """Another number of examples in a step, another cutoff or method would be refused beside --resume."""
    sizes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 3}
    config = load({**settings(tiny_llama, rows, tmp_path / "run", **sizes), "method": "full"})
    (tmp_path / "step-00000003").mkdir()
    with pytest.raises(TrainingError) as caught, memory_explained(config, tmp_path, "luthier train c --resume"):
        raise MemoryError
    going_on, _, anew = caught.value.remedy.partition(". Or start anew, with --overwrite and ")
    assert anew == "data.cutoff_length=32 or method=lora."
    tried = going_on.removeprefix("Try, one after another, with luthier train c --resume: ").replace(";", "").split()
    then = load(dump(config), tried)
    changes = run_folder.differences(dump(config), dump(then))
    assert changes and not [change for change in changes if change.startswith(run_folder.FIXED)]
    then_sizes = then.training.per_device_train_batch_size, then.training.gradient_accumulation_steps
    assert batches == ("{} x {}".format(*then_sizes) if size > 1 else "")
    assert then_sizes[0] * then_sizes[1] == size * 3


def test_interruption_is_an_error_with_its_own_status() -> None:
    assert Interrupted("stopped", "go on", signal.SIGINT).exit_status == 130
