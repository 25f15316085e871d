"""The text of each token of a sequence, end to end the text of all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are no whole character yet


def decoder_of(tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[int]], str]:
    """A function from ids to text, special tokens and white space as they are."""

    def decode(ids: Sequence[int]) -> str:
        return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def decode_fast(ids: Sequence[int]) -> str:
        return str(tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False))

    # the same text, many times faster than through transformers
    probe = tokenizer("How are you,  my friend?\nFine . 谢谢", add_special_tokens=False)["input_ids"]
    return decode_fast if tokenizer.is_fast and decode_fast(probe) == decode(probe) else decode


def token_texts(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """What each token adds to the text of those before it.

    Where a character takes several tokens, the last of them has it and the others are empty. Tokens are decoded behind
    the ones before them, because a decoder may treat the first token of a text in its own way.
    """
    texts: list[str] = []
    start = done = 0  # ids[start:done] is the context that the next tokens are decoded behind
    before = ""
    for end in range(1, len(ids) + 1):
        text = decode(ids[start:end])
        last = end == len(ids)
        if not last and (text.endswith(UNFINISHED) or len(text) <= len(before)):
            texts.append("")
            continue
        texts.append(text[len(before) :])
        start, done = done, end
        before = decode(ids[start:done])
    return texts
