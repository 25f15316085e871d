"""JSON in answers."""

from __future__ import annotations

import json
import re
from typing import Any

INVALID = object()
FENCE = re.compile(r"\s*```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```\s*", re.DOTALL)


def number(text: str) -> int | float:
    """A JSON number with a fraction or an exponent; 1.0 is 1, for JSON has no two kinds of numbers."""
    value = float(text)
    return int(value) if value.is_integer() else value


def strict_json(text: str) -> Any:
    """The value of a text that is JSON by RFC 8259; INVALID where it is not."""

    def refuse(constant: str) -> Any:
        raise ValueError(f"{constant} is not JSON")

    try:
        return json.loads(text, parse_constant=refuse, parse_float=number)
    except (ValueError, RecursionError):
        return INVALID


def without_fence(text: str) -> str:
    """What stands in a code fence around the whole text, or the text."""
    match = FENCE.fullmatch(text)
    return match[1] if match else text


def values_in(text: str) -> list[Any]:
    """The JSON objects and arrays that stand in a text, outermost ones, in order."""
    decoder, found, place = json.JSONDecoder(parse_float=number), [], 0
    while (match := re.compile(r"[{\[]").search(text, place)) is not None:
        try:
            value, place = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):
            place = match.start() + 1
        else:
            found.append(value)
    return found
