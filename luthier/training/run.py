"""A run as the loop sees it: everything it needs, and where it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from luthier.config.schema import RunConfig
from luthier.data.examples import TokenizedExample
from luthier.training.answering import Answering
from luthier.training.callbacks import Bridge
from luthier.training.checkpoints import Checkpoints
from luthier.training.engine import Engine
from luthier.training.feeds import Feed
from luthier.training.interruption import StopRequest
from luthier.training.metrics_log import JsonLines, Window
from luthier.training.optimization import trained_parameters
from luthier.training.schedule import Schedule
from luthier.training.stage import Stage


@dataclass(slots=True)
class Position:
    """Where a run is.

    Args:
        epoch, index: `index` steps of `epoch` are done.
        at_end: no step of the epoch is left. epoch_closed: its end's events have been fired.
        place: where a stream goes on, see `luthier.training.feeds.Step`.
    """

    epoch: int = 0
    index: int = 0
    at_end: bool = False
    epoch_closed: bool = True
    place: dict[str, int] = field(default_factory=dict)


@dataclass
class Fit:
    """Everything a run needs, and its state.

    Args:
        validation, test: examples that are measured only; empty where there are none.
        validation_sets: the parts of `validation` that are measured apart, by name; none unless asked for.
        share_in_evaluation: whether a batch of an evaluation lays down once what its sequences begin with.
        answering: how evaluations generate answers; None where they don't.
        feed: gives the batches of every step. rejected: where rows of a stream that can't be used are written.
        scorer: as the engine prepared it. model: what is saved and shown to callbacks.
        save_model: writes model and tokenizer into a folder. save_method_state: what the method needs beside them to go on.
        report: told (step, values) after every step, for the progress display. say: told sentences.
        resume_command: named to the user when the run is interrupted.
    """

    config: RunConfig
    schedule: Schedule
    stage: Stage
    engine: Engine
    scorer: nn.Module
    model: nn.Module
    optimizer: Optimizer
    scheduler: LambdaLR
    bridge: Bridge
    checkpoints: Checkpoints
    metrics: JsonLines
    feed: Feed
    rejected: JsonLines
    validation: Sequence[TokenizedExample]
    test: Sequence[TokenizedExample]
    validation_sets: Mapping[str, Sequence[TokenizedExample]]
    share_in_evaluation: bool
    answering: Answering | None
    save_model: Callable[[Path], None]
    save_method_state: Callable[[Path], None]
    stop: StopRequest
    report: Callable[[int, dict[str, float]], None]
    say: Callable[[str], None]
    resume_command: str
    position: Position = field(default_factory=Position)
    window: Window = field(default_factory=Window)
    skipped: int = 0
    loss_total: float = 0.0
    loss_steps: int = 0
    saved_at: tuple[int, bool] | None = None
    stopped_before: bool = False

    def __post_init__(self) -> None:
        self.parameters = [parameter for _, parameter in trained_parameters(self.model)]
