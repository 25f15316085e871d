"""What a plan is made of: memory on one device, time, disk."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from luthier.config.training_section import TrainingConfig


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes on one device at the moment of the peak; all but the last three add up to `peak`.

    Args:
        activations: what the layers saved for backward, and work on. head: the output head's working memory. update: the
            optimizer's, beside its states.
        gathered: of other devices, for a moment. allocator: kept beyond what lives. fixed: the process itself.
        saved: all that the forward pass leaves for backward. all_gradients: when backward is done. host: offloaded.
    """

    weights: int
    optimizer_states: int
    gradients: int
    activations: int
    head: int
    update: int
    gathered: int
    allocator: int
    fixed: int
    saved: int
    all_gradients: int
    host: int

    @property
    def peak(self) -> int:
        """The largest sum."""
        of_training = (self.weights, self.optimizer_states, self.gradients, self.activations, self.head, self.update)
        return sum(of_training) + self.gathered + self.allocator + self.fixed

    def as_dict(self) -> dict[str, int]:
        """Plain values, the peak among them."""
        return {**asdict(self), "peak": self.peak}


@dataclass(frozen=True, slots=True)
class Time:
    """How long it takes.

    Args:
        seconds_per_run: 0 where the number of steps is not known.
        measured_share: how much of a step's time was timed here; 0: reckoned from published figures.
    """

    seconds_per_step: float
    seconds_per_run: float
    tokens_per_second: float
    measured_share: float


@dataclass(frozen=True, slots=True)
class Disk:
    """Bytes: of one checkpoint, of the trunk, and of all that the run keeps at one time, final model included."""

    checkpoint: int
    trunk: int
    total: int

    @classmethod
    def of(
        cls, training: TrainingConfig, saved: tuple[int, int], steps: int, steps_per_epoch: int | None, trunk: int = 0
    ) -> Disk:
        """What a run keeps.

        Args:
            saved: bytes of its model and of its optimizer's states.
            steps, steps_per_epoch: see `luthier.planning.rows.Batches`.
        """
        if steps_per_epoch:
            epochs = math.ceil(steps / steps_per_epoch)
        else:  # nobody knows those that max_steps ends, of a stream or of rows that are not at hand
            epochs = 0 if steps else math.ceil(training.num_train_epochs)
        kept = training.checkpoints_at_once(steps, epochs)
        return cls(sum(saved), trunk, kept * sum(saved) + saved[0] + trunk)
