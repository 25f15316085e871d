"""The room that a run needs on its disk."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luthier.commands.run_folder import TRUNK
from luthier.foundation.files import remove_leftovers

if TYPE_CHECKING:
    from luthier.commands.setup import Setup
    from luthier.training.checkpoints import Checkpoints


def space_needed(setup: Setup, checkpoints: Checkpoints) -> int:
    """Bytes that a run has yet to write: the checkpoints it keeps, one more while it is written, and final/."""
    from luthier.training.trained import state_bytes

    training = setup.config.training
    beside = [*setup.source.tokenizer.glob("tokenizer*"), *setup.source.tokenizer.glob("*.jinja")]
    state = sum(path.stat().st_size for path in beside if path.is_file()) + 2**18  # and JSON files
    weights = 4 * (setup.count.total if setup.method.saves == "model" else setup.count.trainable)
    one = weights + state_bytes(training.optim, setup.trained) + state
    epochs = setup.schedule.total_epochs if setup.schedule.steps_per_epoch is not None else 0  # a stream's nobody knows
    kept = training.checkpoints_at_once(setup.schedule.total_steps, epochs)
    missing = max(1, kept - len(checkpoints.paths()))  # an interrupted run writes one in any case
    return missing * one + weights + state


def check_space(setup: Setup, folder: Path, checkpoints: Checkpoints) -> None:
    """Refuse a run whose checkpoints and final model do not fit.

    Raises:
        CheckpointError: with both numbers.
    """
    from luthier.scoring.trunk import remove_trunk
    from luthier.training.checkpoints import need_space

    if setup.config.training.trunk_cache_limit_gib:
        remove_leftovers(folder / TRUNK)
    else:  # what a full disk advises
        remove_trunk(folder / TRUNK)
    need_space(folder, space_needed(setup, checkpoints))
