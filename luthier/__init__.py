"""luthier fine-tunes language models: one config in, a model out that you can chat with, measure, export and serve."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from luthier.commands.train import TrainResult

__version__ = "0.1.0"
__all__ = ["__version__", "train"]


def train(config: str | Path | Mapping[str, Any], *, resume: bool = False, overwrite: bool = False) -> TrainResult:
    """Train a model as a config says.

    Args:
        config: path of a YAML or JSON file, or the same as a mapping.
        resume: go on from the newest checkpoint that verifies, or start at the beginning where there is none.
        overwrite: start anew in a folder that holds another run.

    Raises:
        luthier.foundation.errors.UserError: the config, data, model or machine do not allow it; says why.
    """
    from luthier.commands.train import train as command

    return command(config, resume=resume, overwrite=overwrite)
