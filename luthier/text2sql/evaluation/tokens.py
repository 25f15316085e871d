"""A query as the tokens that Spider's parser reads.

The official parser tokenizes English prose (Penn Treebank's rules) after it has put quoted values aside, and mends what that does
to operators. What it makes of a query decides whether the query parses, so the same tokens come out here, odd ones
included: `a=1` is one token, `a = 1` is three, `a,b` three but `1,2` one, `<>` two. A value that is stuck to something is none.
"""

from __future__ import annotations

import re

# one token: a value put aside keeps its place in the private use area, which is not white space and has no rule
_TOKEN = re.compile(
    r"""
      [«“‘„»”’\]\[(){}<>;@\#$%&?!*]   # alone, wherever they stand
    | ``?
    | \.{2,}
    | --
    | [:,](?!\d)                      # not inside a number
    | \.(?=[\])}>»”’\s]*$)            # the end of a sentence
    | (?:(?![«“‘„»”’\]\[(){}<>;@\#$%&?!*`\s]|\.{2,}|--|[:,](?!\d)|(?<!\.)\.(?=[\])}>»”’\s]*$)).)+
    """,
    re.VERBOSE | re.DOTALL,
)
# a full stop before white space ends a sentence, but for an initial (`J. Smith`) or a number before a small letter
_SENTENCE_END = re.compile(r"(?<=\w[^\W\d]\.)\s+|(?<=\d\.)\s+(?=[A-Z])|(?<=[)\]}]\.)\s+")
_VALUE_PLACE = re.compile("\ue000(\\d+)\ue001")

_UNUSED = {0xE000: "\ufffd", 0xE001: "\ufffd"}


class UnreadableError(Exception):
    """A query that the official parser can't read."""


def tokenize(query: str) -> list[str]:
    """Tokens in small letters; a quoted value is one token with its quotes, which are double ones, and its case.

    Raises:
        UnreadableError: a quote is not closed.
    """
    parts = query.translate(_UNUSED).replace("'", '"').split('"')
    if len(parts) % 2 == 0:
        raise UnreadableError("a quote is not closed")
    values = parts[1::2]
    aside = "".join(part if place % 2 == 0 else f"\ue000{place // 2}\ue001" for place, part in enumerate(parts))
    tokens: list[str] = []
    for sentence in _SENTENCE_END.split(aside):
        for token in _TOKEN.findall(sentence):
            whole = _VALUE_PLACE.fullmatch(token)
            # what is stuck to a word or an operator (`='x'`) stays a token that names nothing
            tokens.append(f'"{values[int(whole[1])]}"' if whole else token.lower())
    return _joined_operators(tokens)


def _joined_operators(tokens: list[str]) -> list[str]:
    """`>` `=` is one operator."""
    joined: list[str] = []
    for word in tokens:
        if word == "=" and joined and joined[-1] in ("!", ">", "<"):
            joined[-1] += "="
        else:
            joined.append(word)
    return joined
