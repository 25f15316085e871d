"""A user's callbacks that end the second of two ranks, and only that, after the third step."""

import os
import signal
from typing import Any

from transformers import TrainerCallback


class StopOneRank(TrainerCallback):
    number = signal.SIGTERM

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and not state.is_world_process_zero:
            os.kill(os.getpid(), self.number)


class SaveOneRank(TrainerCallback):
    """Asks for a save on one rank alone, at an event after which nobody else looks."""

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            control.should_save = True


class KillOneRank(StopOneRank):
    number = signal.SIGKILL
