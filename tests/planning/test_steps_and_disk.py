"""What a plan says of steps is what a run does."""

from __future__ import annotations

from pathlib import Path

from luthier.commands.plan import plan
from tests.tiny import config_for


def test_several_devices_warm_up_in_their_own_number_of_steps(tiny_llama: Path, rows: Path, tmp_path: Path) -> None:
    """24 rows by 4 for 5 epochs: 30 steps, a tenth of which is 3; two devices take 15, whose tenth is rounded up to 2."""
    config = config_for(tiny_llama, rows, tmp_path / "run", max_steps=-1, num_train_epochs=5, warmup_steps=0.1)
    for hardware, steps, warming in (("1x24GB", 30, 3), ("2x24GB", 15, 2)):
        found = plan(config, hardware=hardware)
        assert (found.total_steps, found.warmup_steps) == (steps, warming)
