"""Conversations as one sequence each: loss on the assistant's turns, their stop tokens included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.data.encoders._rendered import (
    CONTROL_TOKENS,
    CUT_BEFORE_ANSWER,
    LengthOptions,
    all_of,
    encode_rendered,
    train_last_only,
)
from luthier.data.examples import Encoded
from luthier.data.piece_tokens import Piece
from luthier.data.records import Conversation, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

__all__ = ["CONTROL_TOKENS", "CUT_BEFORE_ANSWER", "NEEDS_TEMPLATE", "RECORD", "Options", "build"]

RECORD = Conversation
NEEDS_TEMPLATE = True


class Options(LengthOptions):
    """Lengths, and which tokens have a loss."""

    name: Literal["conversation"] = "conversation"
    train_on: Literal["assistant", "last", "all"] = Field(
        "assistant",
        description="assistant: every assistant turn; last: only the last one; all: every token of the conversation, "
        "questions and the template's own words too. A turn of weight 0 is never trained.",
    )


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes conversations; it raises `DataError` for over-long rows under `over_length: error`."""
    assert renderer is not None

    def sequences(record: Conversation) -> list[list[Piece]]:
        pieces = renderer.pieces(record.messages, tools=record.tools)
        if options.train_on == "last":
            pieces = train_last_only(pieces)
        elif options.train_on == "all":
            pieces = [replace(piece, weight=1.0) if piece.weight is None else piece for piece in pieces]
        return [pieces]

    def encode(records: Sequence[Record]) -> Encoded:
        talks = all_of(records, Conversation)
        return encode_rendered(talks, renderer, options, sequences, lambda record: record.messages)

    return encode
