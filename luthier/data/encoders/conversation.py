"""Conversations as one sequence each: loss on the assistant's turns, their stop tokens included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from luthier.config.stage_encoders import TrainOn
from luthier.data.encoders._lengths import LengthOptions, Rendered, TurnLimits
from luthier.data.encoders._rendered import CONTROL_TOKENS, CUT_BEFORE_ANSWER, RenderedEncoder, last_answers
from luthier.data.examples import Encoded
from luthier.data.records import Conversation, Message, Record, RowError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

__all__ = ["CONTROL_TOKENS", "CUT_BEFORE_ANSWER", "NEEDS_TEMPLATE", "RECORD", "Options", "build"]

RECORD = Conversation
NEEDS_TEMPLATE = True


class Options(LengthOptions):
    """Lengths, and which tokens have a loss."""

    CANNOT_SPLIT = ""

    name: Literal["conversation"] = "conversation"
    train_on: TrainOn = "assistant"
    max_source_length: int | None = Field(None, ge=1, description="Longest question of a turn, in tokens.")
    max_target_length: int | None = Field(None, ge=1, description="Longest answer of a turn, in tokens.")

    @model_validator(mode="after")
    def _last_is_kept(self) -> Options:
        if self.train_on != "last":
            return self
        if self.over_length == "split":
            raise ValueError(
                "data.over_length is split, but stage.train_on is last: use truncate_left, which keeps the last answer"
            )
        if self.max_source_length is not None:
            raise ValueError(
                "data.max_source_length and max_target_length leave out the last turns, but stage.train_on is last: "
                "use data.cutoff_length"
            )
        return self


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes conversations; see `RenderedEncoder` for what it raises."""
    assert renderer is not None

    def render(record: Conversation) -> list[Rendered]:
        if options.train_on == "all":
            _refuse_untrained_questions(record.messages)
        pieces = renderer.pieces(record.messages, tools=record.tools)
        if options.train_on == "last":
            return [last_answers(pieces)]
        answers = tuple(index for index, piece in enumerate(pieces) if piece.weight is not None)
        if options.train_on == "all":
            pieces = [replace(piece, weight=1.0) if piece.weight is None else piece for piece in pieces]
        return [Rendered(pieces, answers)]

    limits = None
    if options.max_source_length is not None and options.max_target_length is not None:
        limits = TurnLimits(options.max_source_length, options.max_target_length)
    return RenderedEncoder(
        Conversation, renderer, options, render, learns_last=options.train_on == "last", limits=limits
    )


def _refuse_untrained_questions(messages: Sequence[Message]) -> None:
    for number, message in enumerate(messages):
        if message.role != "assistant" and message.weight == 0:
            raise RowError(
                f"turn {number + 1}, of {message.role}, is not to be trained, but stage.train_on is all: questions and the "
                "template's words are trained as one text."
            )
