"""A disk that fills up while a run writes other things than a checkpoint: told as what it is, and gone on from."""

from __future__ import annotations

import errno
import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

import luthier
from luthier.cli import main
from luthier.commands import run_folder
from luthier.commands.train import _end_noted, train
from luthier.foundation.errors import CheckpointError, Interrupted
from luthier.training.engines.single import Single
from luthier.training.exhaustion import disk_explained
from tests.tiny import config_for
from tests.training.whole_runs import traces


class Fill(TrainerCallback):
    """Leaves no room: for files above 8 kB when training has ended, or for lines of metrics from step 6 on."""

    def __init__(self) -> None:
        self.metrics: Path | None = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.metrics is not None and state.global_step == 6:
            self.metrics.unlink()
            self.metrics.symlink_to("/dev/full")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (8000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


@pytest.fixture
def file_sizes() -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_while_the_final_model_is_written(
    tiny_llama: Path,
    rows: Path,
    tmp_path: Path,
    file_sizes: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The other ranks are told by what `lead` raises, so there too it must be an error that the user can mend."""
    told: list[BaseException] = []

    def lead(self: Single, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except BaseException as error:
            told.append(error)
            raise

    monkeypatch.setattr(Single, "lead", lead)
    config = config_for(tiny_llama, rows, tmp_path / "run", callbacks=[f"{__name__}.Fill"])
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config))
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    assert main(["train", str(file)]) == 2
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    said = capsys.readouterr().err
    assert f"the disk is full: the run could not write to {tmp_path / 'run'} (" in said
    assert "step-00000012 is whole and kept." in said
    assert f"Make room, then go on with: luthier train {file} --resume" in said
    assert "Traceback" not in said
    assert [(type(error), getattr(error, "exit_status", 1)) for error in told] == [(CheckpointError, 2)]
    noted = json.loads((tmp_path / "run" / "run.json").read_text())
    assert noted["status"] == "failed"
    assert "the disk is full" in noted["results"]["error"]
    assert not (tmp_path / "run" / "final").exists()

    config["training"]["callbacks"] = []
    luthier.train(config, resume=True)
    luthier.train({**config, "output_dir": str(tmp_path / "unbroken")})
    assert traces(tmp_path / "run") == traces(tmp_path / "unbroken")


def test_while_a_line_of_metrics_is_written(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    fill = Fill()
    fill.metrics = tmp_path / "run" / "metrics.jsonl"
    with pytest.raises(CheckpointError, match="the disk is full") as full:
        train(config_for(tiny_llama, rows, tmp_path / "run"), callbacks=[fill])
    assert "step-00000004 is whole and kept" in full.value.problem
    assert "luthier.train(config, resume=True)" in full.value.remedy
    fill.metrics.unlink()
    fill.metrics = tmp_path / "early" / "metrics.jsonl"
    with pytest.raises(CheckpointError, match="No checkpoint had been written yet"):
        train(config_for(tiny_llama, rows, tmp_path / "early", save_steps=50), callbacks=[fill])
    fill.metrics.unlink()


def test_a_run_that_is_stopped_then_still_ends_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "write_end", full)
    with pytest.raises(Interrupted), _end_noted(tmp_path):
        raise Interrupted("stopped after step 3 of 9", "Go on with it.", 2)


def test_an_error_of_another_kind_is_left_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="denied"), disk_explained(tmp_path, tmp_path, tmp_path / "trunk", "again"):
        raise OSError(errno.EACCES, "denied")


@pytest.mark.parametrize("there", [True, False])
def test_a_trunk_that_fills_the_disk_is_named(there: bool, tmp_path: Path) -> None:
    trunk = tmp_path / "trunk"
    if there:
        trunk.mkdir()
    with pytest.raises(CheckpointError) as full, disk_explained(tmp_path, tmp_path, trunk, "again"):
        raise OSError(errno.EDQUOT, "quota")
    assert (f"training.trunk_cache_limit_gib=0 does without {trunk}" in full.value.remedy) is there
