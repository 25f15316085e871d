"""Supervised fine-tuning: the next-token loss on assistant turns."""

from __future__ import annotations

from typing import TYPE_CHECKING

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import encoder_of
from luthier.data.encoders.conversation import TrainOn
from luthier.training.stage import weight_sum, weighted_nll

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.scoring.scorer import Scores


class Options(PluginOptions):
    """Which tokens are learnt."""

    name: str = "sft"
    train_on: TrainOn = "assistant"


class Sft:
    """Loss: mean over all targets of a step of -log p(target), each scaled by its message's weight."""

    def __init__(self, options: Options) -> None:
        self.options = options
        rows = encoder_of(options)
        self.encoder, self.encoder_options = rows.encoder, rows.encoder_options

    def denominator(self, batch: Batch) -> float:
        """Sum of the targets' weights."""
        return weight_sum(batch)

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """Weighted negative log-likelihood, summed."""
        return weighted_nll(scores, batch)


def build(options: Options) -> Sft:
    """The stage for these options."""
    return Sft(options)
