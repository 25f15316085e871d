"""Prompts for a stage in which the model answers by itself (ppo, grpo): one sequence each, nothing of which is a target.

Such a stage needs of a row what comes before its last answer, opened for the next one as in chat; that answer is no
part of the tokens. A reward that compares with it finds the record by the example's origin. Of a prompt that is too
long the oldest exchanges go, whatever side is cut: its end is what is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

from luthier.data.encoders._lengths import LengthOptions, Rendered
from luthier.data.encoders._rendered import RenderedEncoder
from luthier.data.examples import Encoded
from luthier.data.records import Conversation, Record

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

RECORD = Conversation
NEEDS_TEMPLATE = True
TRAINS_TOKENS = False


class Options(LengthOptions):
    """Lengths."""

    CANNOT_SPLIT = "a prompt is in one piece"

    name: Literal["prompt"] = "prompt"


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes prompts; see `RenderedEncoder` for what it raises."""
    assert renderer is not None

    def render(record: Conversation) -> list[Rendered]:
        last = max(index for index, message in enumerate(record.messages) if message.role == "assistant")
        pieces = renderer.pieces(record.messages[:last], add_generation_prompt=True, tools=record.tools)
        return [Rendered([replace(piece, weight=None) for piece in pieces], ())]

    return RenderedEncoder(Conversation, renderer, options, render)
