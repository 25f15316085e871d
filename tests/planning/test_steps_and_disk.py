"""What a plan says of steps and of the disk is what a run does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.commands.plan import plan
from luthier.commands.train import train
from luthier.config.training_section import TrainingConfig
from luthier.training import checkpoints
from tests.tiny import config_for

BEST = {"load_best_model_at_end": True}


def test_several_devices_warm_up_in_their_own_number_of_steps(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """24 rows by 4 for 5 epochs: 30 steps, a tenth of which is 3; two devices take 15, whose tenth is rounded up to 2."""
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=-1, num_train_epochs=5, warmup_steps=0.1)
    for hardware, steps, warming in (("1x24GB", 30, 3), ("2x24GB", 15, 2)):
        found = plan(config, hardware=hardware)
        assert (found.total_steps, found.warmup_steps) == (steps, warming)


@pytest.mark.parametrize(
    ("settings", "steps", "epochs", "expected"),
    [
        ({"save_strategy": "no"}, 12, 2, 0),
        ({"save_strategy": "steps", "save_steps": 5}, 12, 2, 3),  # after 5, 10 and 12
        ({"save_strategy": "steps", "save_steps": 4}, 12, 2, 3),
        ({"save_strategy": "steps", "save_steps": 500}, 12, 2, 1),
        ({"save_strategy": "steps", "save_steps": 0.3}, 11, 2, 3),  # every 4
        ({"save_strategy": "steps", "save_steps": 5}, 0, 2, 1),
        ({"save_strategy": "steps", "save_steps": 5, "save_total_limit": 2}, 0, 2, 3),
        (
            {"save_strategy": "steps", "save_steps": 2, "save_total_limit": 2},
            12,
            2,
            3,
        ),  # two, and the one being written
        ({"save_strategy": "epoch"}, 12, 3, 3),
        ({"save_strategy": "epoch"}, 0, 3, 3),
        ({"save_strategy": "epoch"}, 2, 5, 2),
        ({"save_strategy": "epoch", "save_total_limit": 1}, 12, 3, 2),
        # the best besides, whether final/ takes it or not
        (BEST | {"save_strategy": "epoch", "save_total_limit": 1, "eval_strategy": "epoch"}, 50, 5, 3),
        (BEST | {"save_strategy": "steps", "save_steps": 6, "eval_strategy": "steps", "eval_steps": 2}, 12, 2, 6),
        ({"save_strategy": "epoch", "save_total_limit": 1, "eval_strategy": "epoch"}, 50, 5, 3),
        ({"save_strategy": "steps", "save_steps": 6, "eval_strategy": "steps", "eval_steps": 2}, 12, 2, 2),
        # a stream's epochs are not known
        ({"save_strategy": "epoch"}, 12, 0, 1),
        ({"save_strategy": "epoch", "save_total_limit": 2}, 12, 0, 3),
        ({"save_strategy": "epoch", "save_total_limit": 2}, 2, 0, 2),
    ],
)
def test_checkpoints_at_one_time(settings: dict[str, Any], steps: int, epochs: int, expected: int) -> None:
    given = {"save_total_limit": None, **settings}
    assert TrainingConfig.model_validate(given).checkpoints_at_once(steps, epochs) == expected


@pytest.mark.parametrize(
    ("settings", "saved_after"),
    [
        ({"save_strategy": "steps", "save_steps": 5}, [5, 10, 12]),
        ({"save_strategy": "steps", "save_steps": 4}, [4, 8, 12]),
        ({"save_strategy": "epoch", "max_steps": 15}, [6, 12, 15]),
        ({"save_strategy": "epoch", "max_steps": -1, "num_train_epochs": 1.5}, [6, 9]),
    ],
)
def test_the_disk_holds_what_a_run_writes(
    settings: dict[str, Any], saved_after: list[int], tiny_llama: Path, rows: Path, tmp_path: Path
) -> None:
    config = config_for(tiny_llama, rows, tmp_path / "run", save_total_limit=None, **settings)
    disk = plan(config, hardware="1x24GB").plan.disk
    train(config)
    checkpoints = sorted((tmp_path / "run" / "checkpoints").iterdir())
    assert [json.loads((path / "manifest.json").read_text())["step"] for path in checkpoints] == saved_after
    weights = (checkpoints[0] / "adapter_model.safetensors").stat().st_size
    assert disk.total == pytest.approx(len(saved_after) * disk.checkpoint + weights, rel=0.05)


def test_the_best_checkpoint_takes_room_though_final_takes_the_last(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first is the best, for the loss falls and a greater one is said to be better."""
    settings = {"eval_strategy": "steps", "eval_steps": 4, "greater_is_better": True, "save_total_limit": 1}
    config = config_for(tiny_llama, rows, tmp_path / "run", **settings)
    config["data"]["validation"] = 4
    standing, find_fault = [], checkpoints.find_fault

    def counted(path: Path) -> str:
        standing.append(len(list(path.parent.glob("step-*"))))
        return find_fault(path)

    monkeypatch.setattr(checkpoints, "find_fault", counted)
    train(config)
    assert max(standing) == TrainingConfig.model_validate(config["training"]).checkpoints_at_once(12, 3) == 3
    kept = sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert kept == ["step-00000004", "step-00000012"]


def test_a_stream_needs_no_room_for_a_checkpoint_of_every_step(
    tiny_llama: Path, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed, planned, kept = [], [], []
    monkeypatch.setattr(checkpoints, "need_space", lambda folder, size: needed.append(size))
    for strategy in ("epoch", "no"):  # which writes one if it is interrupted
        out = tmp_path / strategy
        config = config_for(tiny_llama, rows, out, save_strategy=strategy, save_total_limit=None, max_steps=3)
        config["data"]["streaming"] = True
        planned.append(plan(config, hardware="1x24GB").plan.disk)
        train(config)
        kept.append(len(list((out / "checkpoints").glob("step-*"))))
    assert kept == [1, 0]
    assert planned[0].total == planned[1].total + planned[0].checkpoint
    assert needed[0] == needed[1]
