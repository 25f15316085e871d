"""Pretraining on plain text: the next-token loss on every token of blocks cut from the joined documents."""

from __future__ import annotations

from pydantic import Field

from luthier.config.sections import PluginOptions
from luthier.training.stage import NextTokenStage


class Options(PluginOptions):
    """How documents share a block."""

    name: str = "pretrain"
    attend_across_documents: bool = Field(
        True,
        description="Whether a token sees the documents before its own in a block, as in GPT-2's pretraining.",
    )


def build(options: Options) -> NextTokenStage:
    """The stage for these options."""
    return NextTokenStage(options)
