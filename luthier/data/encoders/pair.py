"""Preference pairs: two sequences each, the prompt with the chosen and with the rejected answer, in this order.

Only the answers have a loss. Where truncation leaves nothing of one answer, nothing of the pair is trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from luthier.data.encoders._rendered import LengthOptions, all_of, encode_rendered, train_last_only
from luthier.data.examples import Encoded
from luthier.data.piece_tokens import Piece
from luthier.data.records import Message, Pair, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

RECORD = Pair
NEEDS_TEMPLATE = True


class Options(LengthOptions):
    """Lengths, each of one sequence: a prompt with one answer."""

    name: Literal["pair"] = "pair"


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes pairs; it raises `DataError` for over-long rows under `over_length: error`."""
    assert renderer is not None

    def answered(record: Pair, answer: tuple[Message, ...]) -> list[Piece]:
        pieces = renderer.pieces((*record.prompt, *answer), tools=record.tools)
        return train_last_only(pieces, sum(message.role == "assistant" for message in answer))

    def sequences(record: Pair) -> list[list[Piece]]:
        return [answered(record, record.chosen), answered(record, record.rejected)]

    def encode(records: Sequence[Record]) -> Encoded:
        pairs = all_of(records, Pair)
        return encode_rendered(
            pairs,
            renderer,
            options,
            sequences,
            lambda record: (*record.prompt, *record.chosen, *record.rejected),
        )

    return encode
