"""Pretraining on plain text: the next-token loss on every token of blocks cut from the joined documents."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import encoder_of
from luthier.training.stage import weight_sum, weighted_nll

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.scoring.scorer import Scores


class Options(PluginOptions):
    """How documents share a block."""

    name: str = "pretrain"
    attend_across_documents: bool = Field(
        True,
        description="Whether a token sees the documents before its own in a block, as in GPT-2's pretraining.",
    )


class Pretrain:
    """Loss: mean over all tokens of a step of -log p(token)."""

    def __init__(self, options: Options) -> None:
        self.options = options
        rows = encoder_of(options)
        self.encoder, self.encoder_options = rows.encoder, rows.encoder_options

    def denominator(self, batch: Batch) -> float:
        """Number of targets."""
        return weight_sum(batch)

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """Negative log-likelihood, summed."""
        return weighted_nll(scores, batch)


def build(options: Options) -> Pretrain:
    """The stage for these options."""
    return Pretrain(options)
