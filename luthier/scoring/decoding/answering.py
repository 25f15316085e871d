"""One answer to one prompt, its text told as it grows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from luthier.config.generation_section import GenerationSettings
from luthier.foundation.errors import ModelError
from luthier.model.config_changes import known_positions
from luthier.model.generation import Generated
from luthier.model.token_text import TokenText
from luthier.scoring.decoding.generating import generate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    settings: GenerationSettings,
    stop_token_ids: Sequence[int],
    on_text: Callable[[str], None] | None = None,
) -> Generated:
    """Continue a prompt until a stop token, a stop string or the longest length.

    Args:
        prompt_ids: the rendered conversation, generation prompt included.
        stop_token_ids: ids that end an answer.
        on_text: gets the text piece by piece as it is made; with beams, all at once.

    Raises:
        ModelError: the conversation fills all positions that the model knows, or `max_length`.
    """
    text = TokenText(tokenizer, settings.stop_strings)

    def tell(row: int, number: int, token: int) -> None:
        if number == 0 and on_text is not None:
            text.push(token)
            if piece := text.news():
                on_text(piece)

    found, *_ = sorted(
        generate(
            model,
            tokenizer,
            [prompt_ids],
            settings,
            stop_token_ids=stop_token_ids,
            on_token=tell if on_text is not None else None,
            say=lambda line: None,
        ),
        key=lambda one: one.number,
    )
    if found.finish_reason == "prompt_too_long":
        knows = known_positions(model.config)
        limit = f"the model knows positions up to {knows}" if knows is not None else ""
        if settings.max_length is not None and (knows is None or settings.max_length < knows):
            limit = f"max_length is {settings.max_length}"
        raise ModelError(
            f"the conversation has {len(prompt_ids)} tokens, and {limit}.", "Start a new one (/new in a chat)."
        )
    if on_text is not None:
        for token in found.token_ids[len(text.token_ids) :]:  # of beams, which tell no token
            text.push(token)
        if piece := text.news(final=True):
            on_text(piece)
    return found
