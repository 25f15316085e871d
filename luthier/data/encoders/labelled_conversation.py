"""Judged answers for KTO: one sequence each, loss on the last answer, and 1 (wanted) or 0 under `label` in extras."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from luthier.data.encoders._lengths import LengthOptions, Rendered
from luthier.data.encoders._rendered import RenderedEncoder, last_answers
from luthier.data.examples import Encoded
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
    """A function that encodes judged answers; see `RenderedEncoder` for what it raises."""
    assert renderer is not None

    def render(record: LabelledConversation) -> list[Rendered]:
        return [last_answers(renderer.pieces(record.messages, tools=record.tools))]

    return RenderedEncoder(
        LabelledConversation, renderer, options, render, extras=lambda record: {"label": float(record.label)}
    )
