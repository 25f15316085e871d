"""Supervised fine-tuning: the next-token loss on assistant turns."""

from __future__ import annotations

from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import TrainOn
from luthier.training.stage import NextTokenStage


class Options(PluginOptions):
    """Which tokens are learnt."""

    name: str = "sft"
    train_on: TrainOn = "assistant"


def build(options: Options) -> NextTokenStage:
    """The stage for these options."""
    return NextTokenStage(options)
