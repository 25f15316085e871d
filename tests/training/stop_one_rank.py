"""A user's callback: after the third step the second of two ranks, and only that, gets a SIGTERM."""

import os
import signal
from typing import Any

from transformers import TrainerCallback


class StopOneRank(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 3 and not state.is_world_process_zero:
            os.kill(os.getpid(), signal.SIGTERM)
