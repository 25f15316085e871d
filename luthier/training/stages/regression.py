"""Regression: a head gives a text, or two, a number; the loss is the squared error.

A fresh head gives numbers near 0, and clipped gradients move it by little: prices near 1e5 would never be reached. So labels
far from that are learnt standardised, (y - mean) / scale over the training rows, and predictions are put back into their unit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import encoder_of
from luthier.foundation.errors import DataError, ModelError
from luthier.training.labelling import Labelling, check_metrics
from luthier.training.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.data.preparing import PreparedData
    from luthier.metrics._metric import Array
    from luthier.model.heads import SequenceHead
    from luthier.scoring.readouts import Readout, Scores


FAR = 10.0  # from what a fresh head gives
ROUNDED = 1e-3  # of the labels' deviation: what float32, in which all is computed, may take from one


class Options(PluginOptions):
    """How predictions are measured."""

    name: str = "regression"
    metrics: list[str] | None = Field(
        None,
        description="What an evaluation gives beside the loss; unset: mean_squared_error, pearson, spearman.",
    )

    standardize: bool | None = Field(
        None,
        description="Learn labels less their mean, divided by their standard deviation over the training rows; predictions are in "
        "the labels' own unit all the same. Unset: where the mean is above 10 in size, or the deviation not between 0.1 and 10.",
    )

    @model_validator(mode="after")
    def _metrics_fit(self) -> Options:
        check_metrics(self.metrics, "regression")
        return self


class Regression(Stage):
    """Squared error of a head's output."""

    def __init__(self, options: Options) -> None:
        rows = encoder_of(options)
        self.encoder, self.encoder_options = rows.encoder, rows.encoder_options
        self.labelling = Labelling("regression", options.metrics)
        self.metrics = self.labelling.metrics
        self.standardize = options.standardize
        self.mean, self.scale = 0.0, 1.0

    def meet(self, data: PreparedData) -> SequenceHead:
        """A head with one output; numbers that are all the same are refused."""
        from luthier.model.heads import SequenceHead

        self.labelling.meet(data)
        labels = data.train.numbers("label")
        mean, scale = float(labels.mean()), float(labels.std())
        rounded = float(abs(labels - labels.astype("f4")).max())
        if rounded > ROUNDED * scale:
            raise DataError(
                f"the labels, {labels.min():.15g} to {labels.max():.15g}, lie so close together for their size that float32 "
                f"rounds them by up to {rounded:.3g}.",
                f"Subtract a number near {mean:.15g} from all of them.",
            )
        wanted = self.standardize
        if wanted is None:
            wanted = abs(mean) > FAR or not 1 / FAR < scale < FAR
        if wanted:
            self.mean, self.scale = mean, scale
        return SequenceHead("regression", (), self.mean, self.scale)

    def keep(self, head: SequenceHead) -> None:
        """Go on in the unit that the head has learnt.

        Raises:
            ModelError: `standardize` asks for another.
        """
        standardized = (head.mean, head.scale) != (0.0, 1.0)
        if self.standardize not in (None, standardized) and (head.mean, head.scale) != (self.mean, self.scale):
            learnt = f"less {head.mean:g}, divided by {head.scale:g}" if standardized else "as they are"
            raise ModelError(
                f"stage.standardize is {str(self.standardize).lower()}, but the model's head has learnt labels {learnt}.",
                "Leave stage.standardize out to go on in the head's unit, or start from the model that it was trained from.",
            )
        self.mean, self.scale = head.mean, head.scale

    @property
    def readout(self) -> Readout:
        """The head at the end of each sequence."""
        from luthier.scoring.readouts import HeadAt

        return HeadAt()

    def denominator(self, batch: Batch) -> float:
        """Rows."""
        return float(len(batch.extras["label"]))

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """Squared errors, summed; of standardised labels in units of their variance."""
        return (scores[self.readout][:, 0] - (batch.extras["label"] - self.mean) / self.scale).square().sum()

    def outcomes(self, scores: Scores, batch: Batch) -> Tensor:
        """The number predicted, and the true one."""
        import torch

        return torch.stack([scores[self.readout][:, 0] * self.scale + self.mean, batch.extras["label"]], dim=1)

    def measure(self, outcomes_EC: Array) -> dict[str, float]:
        """The metrics."""
        return self.labelling.measure(outcomes_EC)

    def prediction(self, outcome_C: Array) -> dict[str, Any]:
        """The number, and what was predicted."""
        return self.labelling.prediction(outcome_C)


def build(options: Options) -> Regression:
    """The stage for these options."""
    return Regression(options)
