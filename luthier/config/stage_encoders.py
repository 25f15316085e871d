"""Which encoder the rows of every stage go through: the one table, for stages whose training code does not exist yet too.

So rows can be looked at and counted for a stage before it can be trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import Field

from luthier.config.plugins import STAGES
from luthier.config.sections import PluginOptions

TrainOn = Annotated[
    Literal["assistant", "last", "all"],
    Field(
        description="assistant: every assistant turn; last: only the last one; all: every token of the conversation, "
        "questions and the template's own words too. A turn of weight 0 is never trained."
    ),
]


@dataclass(frozen=True, slots=True)
class StageEncoder:
    """How a stage's rows become tokens.

    Args:
        encoder: a name in data/encoders.
        settings: those of the stage's own settings that are the encoder's, under the same name; unset ones are left to it.
        constants: settings of the encoder that the stage decides.
        by_head: other encoders, by the stage's setting `head`.
    """

    encoder: str
    settings: tuple[str, ...] = ()
    constants: Mapping[str, Any] = field(default_factory=dict)
    by_head: Mapping[str, StageEncoder] = field(default_factory=dict)


STAGE_ENCODERS: Mapping[str, StageEncoder] = MappingProxyType(
    {
        "sft": StageEncoder("conversation", ("train_on",)),
        "pretrain": StageEncoder("text", ("attend_across_documents",)),
        "reward": StageEncoder("pair"),
        "dpo": StageEncoder("pair"),
        "orpo": StageEncoder("pair"),
        "simpo": StageEncoder("pair"),
        "kto": StageEncoder("labelled_conversation"),
        "ppo": StageEncoder("prompt"),
        "grpo": StageEncoder("prompt"),
        "classification": StageEncoder(
            "labelled",
            ("labels", "multi_label"),
            by_head={"generative": StageEncoder("labelled_answers", ("labels", "prompt", "label_words"))},
        ),
        "regression": StageEncoder("labelled", constants={"labels": ()}),
    }
)


def untrained_stages() -> set[str]:
    """Stages whose rows can be read, but which have no training code."""
    return set(STAGE_ENCODERS) - set(STAGES.names())


@dataclass(frozen=True, slots=True)
class ChosenStage:
    """A config's stage as its data meets it: an encoder and what the stage tells it."""

    encoder: str
    encoder_options: Mapping[str, Any] = field(default_factory=dict)


def encoder_of(stage: PluginOptions) -> ChosenStage:
    """The encoder of a config's stage, with its settings for it; a stage of an outside package says its own.

    Raises:
        UserError: an outside stage that can't be imported.
    """
    known = STAGE_ENCODERS.get(stage.name)
    if known is None:
        built = STAGES.load(stage.name).build(stage)
        return ChosenStage(built.encoder, built.encoder_options)
    known = known.by_head.get(getattr(stage, "head", ""), known)
    # a stage without training code has its name for settings
    settings = {name: value for name in known.settings if (value := getattr(stage, name, None)) is not None}
    return ChosenStage(known.encoder, {**settings, **known.constants})
