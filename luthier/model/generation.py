"""Answers from a model: one at a time, streamed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import ModelError
from luthier.model.config_changes import known_positions
from luthier.model.placement import input_device, without_gradients
from luthier.model.quiet import quiet_peft

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are chosen. temperature 0 takes the likeliest token each time."""

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0


def answer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Sequence[int],
    sampling: Sampling,
    stop_token_ids: Sequence[int],
    on_text: Callable[[str], None] | None = None,
) -> str:
    """Continue a prompt until a stop token or `max_new_tokens`.

    Args:
        prompt_ids: the rendered conversation, generation prompt included.
        stop_token_ids: ids that end an answer.
        on_text: gets the text piece by piece as it is made.

    Returns:
        the answer without special tokens.

    Raises:
        ModelError: the conversation fills all positions that the model knows.
    """
    import torch
    from transformers import GenerationConfig, TextStreamer

    class Pieces(TextStreamer):  # type: ignore[misc]
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            if text and on_text is not None:
                on_text(text)

    longest = known_positions(model.config)
    virtual = getattr(getattr(model, "active_peft_config", None), "num_virtual_tokens", None) or 0
    room = longest - len(prompt_ids) - virtual if longest is not None else sampling.max_new_tokens
    if room < 1:
        raise ModelError(
            f"the conversation has {len(prompt_ids)} tokens, and the model knows positions up to {longest}.",
            "Start a new one (/new in a chat).",
        )
    sampled = sampling.temperature > 0
    how = GenerationConfig(
        max_new_tokens=min(sampling.max_new_tokens, room),
        do_sample=sampled,
        **({"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": 0} if sampled else {}),
        eos_token_id=list(stop_token_ids),
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else stop_token_ids[0],
    )
    streamer = Pieces(tokenizer, skip_prompt=True, skip_special_tokens=True) if on_text is not None else None
    input_ids = torch.tensor([list(prompt_ids)], device=input_device(model))
    with without_gradients(model), quiet_peft(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(sampling.seed)
        output = model.generate(
            input_ids=input_ids, attention_mask=torch.ones_like(input_ids), generation_config=how, streamer=streamer
        )
    text: str = tokenizer.decode(output[0, len(prompt_ids) :], skip_special_tokens=True)
    return text
