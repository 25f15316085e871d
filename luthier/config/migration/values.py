"""Whether a value is of the kind that its key takes, and the value as that kind."""

from __future__ import annotations

import json
import math
from typing import Any

from luthier.config.migration.table import Kind
from luthier.foundation.registry import nearest

TRUE, FALSE = ("true", "yes", "1", "t", "y"), ("false", "no", "0", "f", "n")


class WrongValueError(ValueError):
    """A value of another kind; the message says what is asked for, and the nearest where there is one."""


def as_kind(value: Any, kind: Kind | tuple[str, ...]) -> Any:
    """A value as its key takes it: numbers also as text, as command lines and YAML's `1e-4` bring them.

    Raises:
        WrongValueError: it is of another kind.
    """
    if value is None or kind == "anything":
        return value
    if isinstance(kind, tuple):
        return _one_of(value, kind)
    if kind == "flag":
        return _flag(value)
    if kind in ("whole", "number"):
        return _number(value, whole=kind == "whole")
    if kind == "mapping":
        return _mapping(value)
    if kind == "names":
        if isinstance(value, (dict, bool)):
            raise WrongValueError("takes names")
        return value if isinstance(value, list) else str(value)
    if isinstance(value, (dict, list)):
        raise WrongValueError("takes one text")
    return str(value)


def _one_of(value: Any, words: tuple[str, ...]) -> str:
    text = "no" if value is False and "no" in words else str(value)  # YAML reads a bare no as false
    if text not in words:
        close = nearest(text, words, 1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise WrongValueError(f"{hint}it takes {', '.join(words)}")
    return text


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).lower()
    if text not in (*TRUE, *FALSE):
        raise WrongValueError("takes true or false")
    return text in TRUE


def _mapping(value: Any) -> dict[str, Any]:
    """A mapping, also as the JSON text that command lines bring."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise WrongValueError("takes a mapping, or JSON text of one") from error
    if not isinstance(value, dict):
        raise WrongValueError("takes a mapping")
    return value


def _number(value: Any, *, whole: bool) -> int | float:
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
        if not math.isfinite(found):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise WrongValueError(f"takes a {'whole ' if whole else ''}number") from error
    if found == int(found) and (whole or not isinstance(value, float)):
        return int(found)
    if whole:
        raise WrongValueError("takes a whole number")
    return found
