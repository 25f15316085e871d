"""Special tokens spelled out in a text: the tokenizer takes `<|im_end|>` in a question for the token that ends it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from luthier.data.checking.findings import Hit
from luthier.data.checking.rows import RowTexts

SHOWN_CHARACTERS = 30


def find(rows: Sequence[RowTexts], control: re.Pattern[str]) -> Iterator[Hit]:
    """`control_tokens`.

    Args:
        control: matches the tokenizer's special tokens.
    """
    for row in rows:
        for text in row.every:
            if match := control.search(text):
                start = max(match.start() - SHOWN_CHARACTERS, 0)
                around = text[start : match.end() + SHOWN_CHARACTERS]
                yield Hit("control_tokens", row.split, row.origin, f"{match[0]} in: {around}")
