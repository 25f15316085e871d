"""What every stage is: an encoder for its rows, and a loss as a sum with a denominator known before any forward pass."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import encoder_of

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.scoring.scorer import Scores


class Stage(Protocol):
    """A training stage.

    `encoder` names a file in data/encoders, `encoder_options` are settings for it.
    """

    encoder: str
    encoder_options: Mapping[str, Any]

    def denominator(self, batch: Batch) -> float:
        """What the summed loss of a batch is divided by, before summing over batches and ranks."""
        ...

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """The batch's loss as a sum, not a mean: the loop divides by the sum of the denominators of the whole step."""
        ...


class NextTokenStage:
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
