"""A callback that ends a run in time, for a caller who has promised when it is over."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState


class Deadline(TrainerCallback, ExportableState):  # type: ignore[misc]
    """Stops training, with an evaluation and a checkpoint, while there is time for what comes after the last step.

    Its state says to a run that is resumed that its time was up: see `time_was_up`. Of several ranks the first one's clock
    decides, whose state a checkpoint keeps.

    Args:
        at: when all should be over, by `time.monotonic()`.
        scoring_steps: how many steps of training take as long as one evaluation, until one was seen (a resumed run has
            seen those before it); None: a twelfth of an epoch's, for a fifth of the rows, each in a third of the time
            that it is trained in.
        evaluations_after: made once training has stopped.
        seconds_after: for writing the model.

    Attributes:
        stopped_after: the step after which it stopped the run; None where it did not.
    """

    def __init__(self, at: float, scoring_steps: float | None, evaluations_after: int, seconds_after: float) -> None:
        self.at, self.scoring_steps = at, scoring_steps
        self.evaluations_after, self.seconds_after = evaluations_after, seconds_after
        self.stopped_after: int | None = None
        self._moment = self._seconds = 0.0
        self._steps = 0
        self._evaluating = False
        self._evaluation = 0.0  # seconds of the longest one that was seen, with its checkpoint

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it."""
        return {"args": {}, "attributes": {"stopped_after": self.stopped_after}}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Forget the deadline before this one, but not how long evaluations took."""
        self.stopped_after = None
        self._evaluation = max((line.get("eval_runtime", 0.0) for line in state.log_history), default=0.0)
        if self.scoring_steps is None:
            self.scoring_steps = state.max_steps / max(state.num_train_epochs, 1) / 12

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the clock."""
        self._look()

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look at the clock before what the epoch's end asks for."""
        self._look()
        self._evaluating = control.should_evaluate

    def _look(self) -> None:
        now = time.monotonic()
        if self._evaluating:
            self._evaluation = max(self._evaluation, now - self._moment)
        self._moment, self._evaluating = now, False

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop where another step would be one too many."""
        now = time.monotonic()
        self._seconds += now - self._moment
        self._steps += 1
        self._moment, self._evaluating = now, control.should_evaluate
        if state.global_step >= state.max_steps or control.should_training_stop or not state.is_world_process_zero:
            return
        at_end = args.eval_strategy == "epoch" and state.epoch is not None and float(state.epoch).is_integer()
        step = self._seconds / self._steps
        evaluation = max(self._evaluation, step * (self.scoring_steps or 0.0))
        still = step + ((self._evaluating or at_end) + self.evaluations_after) * evaluation + self.seconds_after
        if now + still <= self.at:
            return
        self.stopped_after = state.global_step
        control.should_training_stop = True
        # under the strategy epoch both come at the epoch's end, which this is now
        control.should_evaluate |= args.eval_strategy == "steps"
        control.should_save |= args.save_strategy == "steps"


def time_was_up(trainer_state: Mapping[str, Any], step: int) -> bool:
    """Whether a run's time was up after a step; whether that alone ended it, `luthier.training.saving.ending_of` says.

    Args:
        trainer_state: a checkpoint's. step: the checkpoint's.
    """
    kept = (trainer_state.get("stateful_callbacks") or {}).get(Deadline.__name__) or {}
    return (kept.get("attributes") or {}).get("stopped_after") == step
