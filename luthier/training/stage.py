"""What every stage is: an encoder for its rows, what it reads of a forward pass, and a loss as a sum with a denominator
known before any forward pass; and, where its examples can be right or wrong, metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import encoder_of

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.data.examples import TokenizedExample
    from luthier.data.preparing import PreparedData
    from luthier.metrics._metric import Array
    from luthier.model.heads import SequenceHead
    from luthier.scoring.readouts import Readout, Scores


class Stage(ABC):
    """A training stage. What most have no need of has an answer here.

    `encoder` names a file in data/encoders, `encoder_options` are settings for it; `metrics` are the names of what an
    evaluation gives beside the loss, in `luthier/metrics`.
    """

    encoder: str
    encoder_options: Mapping[str, Any]
    metrics: tuple[str, ...] = ()
    reference: ClassVar[bool] = False
    """Whether examples must come with the log-probabilities of `luthier.training.reference`."""

    @abstractmethod
    def denominator(self, batch: Batch) -> float:
        """What the summed loss of a batch is divided by, before summing over batches and ranks."""

    @abstractmethod
    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """The batch's loss as a sum, not a mean: the loop divides by the sum of the denominators of the whole step."""

    @property
    def readout(self) -> Readout | Sequence[Readout]:
        """What is read of a forward pass."""
        from luthier.scoring.readouts import TargetLogp

        return TargetLogp()

    def meet(self, data: PreparedData) -> SequenceHead | None:
        """See the data before the model is read; returns the head that the model needs for them, None for a language
        model.

        Raises:
            DataError: they have nothing to tell apart.
        """
        return None

    def keep(self, head: SequenceHead) -> None:
        """Be told the head that the model has learnt already, and is read or trained further with. Most have nothing to keep.

        Raises:
            ModelError: the stage's settings ask for another.
        """
        return None

    def know(self, labels: Sequence[str]) -> None:
        """Be told in place of `meet`, where rows are measured and not learnt, which classes there are; each counts alike. Most have nothing to know."""
        return None

    @property
    def learns_whole(self) -> bool:
        """Whether `learnt` gives every example as it is."""
        return type(self).learnt is Stage.learnt

    def learnt(self, example: TokenizedExample) -> TokenizedExample:
        """What of an example is computed in training; an evaluation sees all of it."""
        return example

    def outcomes(self, scores: Scores, batch: Batch) -> Tensor:
        """What is kept of an evaluation's batch, float [E, c]: a row of numbers for each example. Asked for with metrics."""
        raise NotImplementedError

    def measure(self, outcomes_EC: Array) -> dict[str, float]:
        """The metrics of a set's outcomes."""
        return {}

    def prediction(self, outcome_C: Array) -> dict[str, Any]:
        """One example's outcome for people: its label, and what was predicted; JSON."""
        raise NotImplementedError


class NextTokenStage(Stage):
    """What stages with the ordinary language modelling loss share: the mean of -log p(target) over a step's targets,
    each scaled by its weight."""

    def __init__(self, options: PluginOptions) -> None:
        rows = encoder_of(options)
        self.encoder, self.encoder_options = rows.encoder, rows.encoder_options

    def denominator(self, batch: Batch) -> float:
        """Sum of the targets' weights."""
        return weight_sum(batch)

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """Weighted negative log-likelihood, summed."""
        return weighted_nll(scores, batch)


def weighted_nll(scores: Scores, batch: Batch) -> Tensor:
    """Minus the weighted sum of the targets' log-probabilities."""
    return -(scores.logp_N * batch.weights_N).sum()


def weight_sum(batch: Batch) -> float:
    """Sum of the targets' weights: the number of targets where every weight is 1."""
    return float(batch.weights_N.double().sum())
