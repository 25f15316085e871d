"""Token ids of English words from a memo, for the byte-level tokenizers in common use.

A text is cut before " x" (a space and an ASCII letter) where an ASCII character that is no white space stands before it.
There the pre-tokenizers listed here begin a new pre-token whatever stands around: none of their alternatives goes on
over a space behind such a character, ` ?\\p{L}+` takes the space to the word, and none looks back. BPE works within
pre-tokens, so the parts' ids, end to end, are the text's. Added tokens are cut out before, as the tokenizers library
does it. A part of ASCII of at most `LONGEST` characters is tokenized once; English is mostly such parts, and a look-up
takes a tenth of the time.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LONGEST = 24  # a word with what is written against it
MOST_PARTS = 100_000  # some 25 MB; words beyond these are rare ones

_PART = re.compile(r"\s*+\S++(?:(?!(?<=[!-~]) [A-Za-z])\s++\S++)*+(?:\s++\Z)?|\s++")
_LETTERS = r"[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_ENDINGS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
# Llama 3's pattern and Qwen2's; the byte-level pre-tokenizer has GPT-2's built in
PATTERNS = tuple(f"{_ENDINGS}|{_LETTERS}|{numbers}|{_REST}" for numbers in (r"\p{N}{1,3}", r"\p{N}"))

EncodeTexts = Callable[[Sequence[str]], list[list[int]]]


class WordMemo(NamedTuple):
    """Texts to ids, words from a memo.

    Args:
        encode: the tokenizer's own way.
        added: matches the text of any added token.
    """

    encode: EncodeTexts
    added: re.Pattern[str]
    known: dict[str, list[int]]

    @classmethod
    def of(cls, tokenizer: Tokenizer, encode: EncodeTexts) -> WordMemo | None:
        """A memo for a tokenizer; None for one that isn't known to begin a pre-token at the cuts."""
        tokens = tokenizer.get_added_tokens_decoder().values()
        added = [token.content for token in tokens]
        spaced = any(re.search(r"\s", content) for content in added)
        flagged = any(token.lstrip or token.rstrip or token.single_word or token.normalized for token in tokens)
        if spaced or flagged or tokenizer.encode_special_tokens or not _cuts_are_neutral(tokenizer):
            return None
        longest_first = sorted(map(re.escape, added), key=len, reverse=True)
        return cls(encode, re.compile(f"({'|'.join(longest_first) or '(?!)'})"), {})

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The ids of each text."""
        parts = [[part for text in self.added.split(whole) for part in _PART.findall(text)] for whole in texts]
        new = list(set(chain.from_iterable(parts)).difference(self.known))
        self.known.update(zip(new, self.encode(new), strict=True))
        found = [list(chain.from_iterable(map(self.known.__getitem__, of_text))) for of_text in parts]
        if len(self.known) > MOST_PARTS:
            self.known.clear()
        else:
            for part in new:
                if len(part) > LONGEST or not part.isascii():
                    del self.known[part]
        return found


def _cuts_are_neutral(tokenizer: Tokenizer) -> bool:
    """Whether a tokenizer is one of those the module tells of."""
    from tokenizers import models

    model = tokenizer.model
    # NFC joins nothing to a space, and nothing to an ASCII character before one
    return (
        _settings(tokenizer.normalizer) in (None, {"type": "NFC"})
        and isinstance(model, models.BPE)
        and not (model.dropout or model.continuing_subword_prefix or model.end_of_word_suffix)
        and _begins_words(_settings(tokenizer.pre_tokenizer))
    )


def _settings(part: Any) -> Any:
    """A part of a tokenizer as it stands in tokenizer.json, without writing out the vocabulary."""
    return None if part is None else json.loads(part.__getstate__())


def _begins_words(pre_tokenizer: Mapping[str, Any] | None) -> bool:
    steps = [pre_tokenizer] if pre_tokenizer is not None else []
    if steps and steps[0]["type"] == "Sequence":
        steps = list(steps[0]["pretokenizers"])
    if not steps or steps[-1]["type"] != "ByteLevel" or steps[-1]["add_prefix_space"]:
        return False
    if steps[-1]["use_regex"]:
        return all(step["type"] == "Digits" for step in steps[:-1])
    split = {"type": "Split", "behavior": "Isolated", "invert": False}
    return len(steps) == 2 and any(steps[0] == {**split, "pattern": {"Regex": pattern}} for pattern in PATTERNS)
