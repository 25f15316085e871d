"""Preference pairs: two sequences each, the prompt with the chosen and with the rejected answer, in this order.

Only the answers have a loss. What is cut from the prompt is cut from it in both sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from luthier.data.encoders._lengths import LengthOptions, Rendered
from luthier.data.encoders._rendered import RenderedEncoder, last_answers
from luthier.data.examples import Encoded
from luthier.data.records import Message, Pair, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

RECORD = Pair
NEEDS_TEMPLATE = True
SEQUENCE_NAMES = ("chosen", "rejected")


class Options(LengthOptions):
    """Lengths, each of one sequence: a prompt with one answer."""

    name: Literal["pair"] = "pair"


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes pairs; see `RenderedEncoder` for what it raises."""
    assert renderer is not None

    def answered(record: Pair, answer: tuple[Message, ...]) -> Rendered:
        pieces = renderer.pieces((*record.prompt, *answer), tools=record.tools)
        return last_answers(pieces, sum(message.role == "assistant" for message in answer))

    def render(record: Pair) -> list[Rendered]:
        return [answered(record, record.chosen), answered(record, record.rejected)]

    return RenderedEncoder(Pair, renderer, options, render)
