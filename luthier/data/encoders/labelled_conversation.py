"""Judged answers for KTO: one sequence each, loss on the last answer, and 1 (wanted) or 0 under `label` in extras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from luthier.data.encoders._rendered import LengthOptions, all_of, encode_rendered, train_last_only
from luthier.data.examples import Encoded
from luthier.data.piece_tokens import Piece
from luthier.data.records import LabelledConversation, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

RECORD = LabelledConversation
NEEDS_TEMPLATE = True


class Options(LengthOptions):
    """Lengths."""

    name: Literal["labelled_conversation"] = "labelled_conversation"


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes judged answers; it raises `DataError` for over-long rows under `over_length: error`."""
    assert renderer is not None

    def sequences(record: LabelledConversation) -> list[list[Piece]]:
        return [train_last_only(renderer.pieces(record.messages, tools=record.tools))]

    def encode(records: Sequence[Record]) -> Encoded:
        judged = all_of(records, LabelledConversation)
        return encode_rendered(
            judged,
            renderer,
            options,
            sequences,
            lambda record: record.messages,
            lambda record: {"label": float(record.label)},
        )

    return encode
