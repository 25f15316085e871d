"""Methods on the real rows of examples/identity: smollm2-135m, each at the rate that is recommended for it, held constant."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from transformers import TrainerCallback

from luthier.commands.train import train
from luthier.config.plugins import METHODS

ROOT = Path(__file__).parents[3]
IDENTITY, METHODS_PAGE = ROOT / "examples" / "identity" / "identity.jsonl", ROOT / "docs" / "methods.md"
# a method's settings, and the steps of 2 rows within which the loss is below half of its start: a quarter more than was
# measured (docs/methods.md, which has every method but bitfit: this model has no biases)
STEPS: list[tuple[dict[str, Any], int]] = [
    ({"name": "full"}, 45),
    ({"name": "freeze"}, 87),
    ({"name": "norm_tuning"}, 49),
    ({"name": "lora"}, 64),
    ({"name": "lora", "use_dora": True}, 49),
    ({"name": "adalora"}, 79),
    ({"name": "vera"}, 87),
    ({"name": "oft"}, 18),
    ({"name": "ia3"}, 68),
    ({"name": "prompt_tuning"}, 49),
    ({"name": "p_tuning"}, 87),
    ({"name": "prefix_tuning"}, 68),
    ({"name": "prefix_tuning", "projection": True}, 44),
    ({"name": "adapter"}, 44),
    ({"name": "mam"}, 25),
    ({"name": "unipelt"}, 43),
    ({"name": "llama_pro"}, 44),
]


class UntilHalf(TrainerCallback):
    """Stops when the mean loss of eight steps is below half of that of the first four, or after so many steps."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.losses: list[float] = []
        self.reached: int | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if "loss" not in logs:
            return
        self.losses.append(logs["loss"])
        if len(self.losses) >= 12 and sum(self.losses[-8:]) / 8 < sum(self.losses[:4]) / 8:
            self.reached = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        control.should_training_stop |= self.reached is not None or state.global_step >= self.most


def test_every_method_is_measured() -> None:
    assert {str(method["name"]) for method, _ in STEPS} == set(METHODS.names()) - {"bitfit"}


@pytest.mark.parametrize("name", METHODS.names())
def test_the_rates_of_the_documentation_are_the_methods_own(name: str) -> None:
    row = re.search(rf"^\| `{name}` \|.*$", METHODS_PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    assert row is not None
    told = [float(number) for number in re.findall(r"\d+e-\d+", row[0].split(" | ")[4])]
    options = METHODS.load(name).Options
    own = [options(name=name).recommended_learning_rate]
    if name == "prefix_tuning":
        own.append(options(projection=True).recommended_learning_rate)
    assert told == own


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize(
    ("method", "steps"), STEPS, ids=lambda value: "-".join(map(str, getattr(value, "values", list)()))
)
def test_the_loss_is_halved(
    method: dict[str, Any], steps: int, smollm2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("luthier.training.metrics_log.plot_losses", lambda *arguments: None)
    pace = UntilHalf(steps)
    config = {
        "model": str(smollm2_folder),
        "data": {"train": str(IDENTITY), "cutoff_length": 256},
        "method": method,
        "training": {
            "max_steps": 150,  # as measured: adalora's schedule counts them
            "per_device_train_batch_size": 2,
            "logging_steps": 1,
            "lr_scheduler_type": "constant",
            "save_strategy": "no",
            "use_cpu": True,
        },
        "output_dir": str(tmp_path / "run"),
    }
    train(config, callbacks=[pace])
    assert pace.reached is not None, pace.losses
