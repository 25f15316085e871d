"""A callback that ends a run in time, for a caller who has promised when it is over."""

from __future__ import annotations

import time
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class Deadline(TrainerCallback):  # type: ignore[misc]
    """Stops training, with an evaluation and a checkpoint, while there is time for what comes after the last step.

    Args:
        at: when all should be over, by `time.monotonic()`.
        scoring_steps: how many steps of training take as long as one evaluation, until one was seen.
        evaluations_after: made once training has stopped.
        seconds_after: for writing the model.

    Attributes:
        stopped_after: the step after which it stopped the run; None where it did not.
    """

    def __init__(self, at: float, scoring_steps: float, evaluations_after: int, seconds_after: float) -> None:
        self.at, self.scoring_steps = at, scoring_steps
        self.evaluations_after, self.seconds_after = evaluations_after, seconds_after
        self.stopped_after: int | None = None
        self._moment = self._seconds = 0.0
        self._steps = 0
        self._evaluating = False
        self._evaluation = 0.0  # seconds of the longest one that was seen, with its checkpoint

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the clock."""
        now = time.monotonic()
        if self._evaluating:
            self._evaluation = max(self._evaluation, now - self._moment)
        self._moment = now

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop where another step would be one too many."""
        now = time.monotonic()
        self._seconds += now - self._moment
        self._steps += 1
        self._moment, self._evaluating = now, control.should_evaluate
        step = self._seconds / self._steps
        evaluation = max(self._evaluation, step * self.scoring_steps)
        still = step + (self._evaluating + self.evaluations_after) * evaluation + self.seconds_after
        if now + still <= self.at or state.global_step >= state.max_steps:
            return
        self.stopped_after = state.global_step
        control.should_training_stop = True
        # under the strategy epoch both come at the epoch's end, which this is now
        control.should_evaluate |= args.eval_strategy == "steps"
        control.should_save |= args.save_strategy == "steps"
