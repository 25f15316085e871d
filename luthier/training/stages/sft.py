"""Supervised fine-tuning: the next-token loss on assistant turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from luthier.config.sections import PluginOptions
from luthier.training.stage import weight_sum, weighted_nll

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.scoring.scorer import Scores


class Options(PluginOptions):
    """Supervised fine-tuning has no settings of its own."""

    name: str = "sft"


class Sft:
    """Loss: mean over all targets of a step of -log p(target), each scaled by its message's weight."""

    encoder = "conversation"

    def __init__(self, options: Options) -> None:
        self.options = options
        self.encoder_options: Mapping[str, Any] = {}

    def denominator(self, batch: Batch) -> float:
        """Sum of the targets' weights."""
        return weight_sum(batch)

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """Weighted negative log-likelihood, summed."""
        return weighted_nll(scores, batch)


def build(options: Options) -> Sft:
    """The stage for these options."""
    return Sft(options)
