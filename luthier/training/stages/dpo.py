"""Direct preference optimization (Rafailov et al. 2023, https://arxiv.org/abs/2305.18290, equation 7).

    loss = -log sigmoid(beta * [(log p(chosen) - log r(chosen)) - (log p(rejected) - log r(rejected))])

with p the model that learns and r the reference: the model as it stands before the first step, whose log-probabilities
are computed once for the whole data set (`luthier.training.reference`). The prompt stands once for both answers.

Shapes: E pairs, S = 2 E sequences (chosen, rejected, chosen, ...), N targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import encoder_of
from luthier.foundation.errors import DataError
from luthier.training.reference import name_of, sequence_logp
from luthier.training.stage import Stage

if TYPE_CHECKING:
    from torch import Tensor

    from luthier.data.batch import Batch
    from luthier.data.preparing import PreparedData
    from luthier.scoring.readouts import Scores


class Options(PluginOptions):
    """How far the model may leave the reference."""

    name: str = "dpo"
    beta: float = Field(
        0.1, gt=0, description="How much the log-ratios to the reference count: large values keep the model near it."
    )


class Dpo(Stage):
    """The mean over a step's pairs."""

    reference = True

    def __init__(self, options: Options) -> None:
        rows = encoder_of(options)
        self.encoder, self.encoder_options = rows.encoder, rows.encoder_options
        self.beta = options.beta

    def meet(self, data: PreparedData) -> None:
        """Refuse a stream.

        Raises:
            DataError: the reference's log-probabilities are of a whole set.
        """
        if data.stream is not None:
            raise DataError(
                "stage dpo computes the reference's log-probabilities once for the whole set, and data.streaming has none.",
                "Set data.streaming to false.",
            )

    def denominator(self, batch: Batch) -> float:
        """Pairs."""
        return len(batch.leaves) / 2

    def loss(self, scores: Scores, batch: Batch) -> Tensor:
        """The pairs' losses, summed."""
        import torch

        logp_E2 = sequence_logp(scores.logp_N, batch).view(-1, 2)
        reference_E2 = torch.stack([batch.extras[name_of(0)], batch.extras[name_of(1)]], dim=1)
        ratio_E2 = logp_E2 - reference_E2
        return -torch.nn.functional.logsigmoid(self.beta * (ratio_E2[:, 0] - ratio_E2[:, 1])).sum()


def build(options: Options) -> Dpo:
    """The stage for these options."""
    return Dpo(options)
