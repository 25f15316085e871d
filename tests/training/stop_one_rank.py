"""A user's callbacks that act on one of two ranks alone."""

import math
import os
import signal
from typing import Any

from transformers import TrainerCallback

from luthier.foundation.ranks import ranks
from luthier.training.deadline import Deadline


class StopOneRank(TrainerCallback):
    """Asks the second rank to end after a step."""

    number, step = signal.SIGTERM, 3

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == self.step and not state.is_world_process_zero:
            os.kill(os.getpid(), self.number)


class SaveOneRank(TrainerCallback):
    """Asks for a save on one rank alone, at an event after which nobody else looks."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            control.should_save = True


class KillOneRank(StopOneRank):
    """Ends it at once, in the second epoch."""

    number, step = signal.SIGKILL, 4


def time_is_up_on_the_second_rank() -> Deadline:
    """Its clock alone is past the deadline."""
    return Deadline(0.0 if ranks().rank else math.inf, 0.0, 0, 0.0)
