"""The text of tokens that come one at a time, and where a stop string ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

UNFINISHED = "\ufffd"  # what a decoder writes for bytes that make no character yet


def holds_stop(text: str, stop_strings: Sequence[str]) -> bool:
    """Whether a `TokenText` of this text is at its end: a stop string is complete, and so is the last character."""
    return not text.endswith(UNFINISHED) and any(stop in text for stop in stop_strings)


class TokenText:
    """Grows by tokens; decodes the last few again with each, so that long answers cost no more than short ones.

    Args:
        stop_strings: the text ends before the first of them, wherever token boundaries are.

    Attributes:
        token_ids: all tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop_strings: Sequence[str] = ()) -> None:
        self.token_ids: list[int] = []
        self._tokenizer = tokenizer
        self._stops = tuple(stop_strings)
        self._longest = max(map(len, self._stops), default=0)
        self._text = ""
        self._told = 0
        self._begin = 0  # tokens from here are decoded together: the first of them for the spaces of the others,
        self._read = 0  # whose text begins here
        self._stopped = False

    def push(self, token: int) -> bool:
        """Add a token; whether a stop string is complete."""
        self.token_ids.append(token)
        if self._stops:
            self._decode(final=False)
        return self._stopped

    def news(self, *, final: bool = False) -> str:
        """Text that no call has given yet; what may be the beginning of a stop string is held back until it is known."""
        self._decode(final=final)
        upto = len(self._text)
        if not (final or self._stopped):
            upto -= max((n for n in range(1, self._longest) if self._may_begin(self._text[-n:], n)), default=0)
        piece = self._text[self._told : upto]
        self._told = max(self._told, upto)
        return piece

    def finish(self) -> str:
        """The whole text."""
        self._decode(final=True)
        return self._text

    def _may_begin(self, ending: str, length: int) -> bool:
        return len(ending) == length and any(stop.startswith(ending) for stop in self._stops)

    def _decode(self, final: bool) -> None:
        if self._stopped or self._read == len(self.token_ids):
            return
        known = self._decoded(self.token_ids[self._begin : self._read])
        text = self._decoded(self.token_ids[self._begin :])
        if text.endswith(UNFINISHED) and not final:
            return
        new = text[len(known) :]
        self._begin, self._read = self._read, len(self.token_ids)
        searched_from = max(0, len(self._text) - self._longest + 1)
        self._text += new
        places = [place for stop in self._stops if (place := self._text.find(stop, searched_from)) >= 0]
        if places:
            self._text, self._stopped = self._text[: min(places)], True

    def _decoded(self, ids: Sequence[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
