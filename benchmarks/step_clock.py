"""A transformers callback that notes when each step ends."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from transformers import TrainerCallback


class StepClock(TrainerCallback):
    """`ends` holds time.perf_counter() at every step's end, over all instances; `processor_ends` the processor seconds
    that the process had used by then."""

    ends: ClassVar[list[float]] = []
    processor_ends: ClassVar[list[float]] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.ends.append(time.perf_counter())
        self.processor_ends.append(time.process_time())
