"""JSON: a list of objects, or one object. A file that in truth holds one object per line is read as JSONL."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.data.records import Origin, RawRow
from luthier.data.sources import jsonl
from luthier.data.sources._decoding import read_text
from luthier.data.sources._json_values import broken, need_object, value_at
from luthier.foundation.errors import DataError

SUFFIXES = (".json",)
_SPACE = re.compile(r"[ \t\r\n]*")


class Options(PluginOptions):
    """No settings."""

    name: Literal["json"] = "json"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """The rows of a list; `Origin.row` is the position in it, from 1.

    Raises:
        DataError: broken JSON (line and column), no list of objects, not UTF-8.
    """
    text = read_text(path)
    position = _skip_space(text, 0)
    if position == len(text):
        raise DataError(f"{path} holds only white space.", "Was the file written completely?")
    if text[position] == "[":
        yield from _list(text, position, path)
        return
    value, end = value_at(text, position, path, "row 1")
    end = _skip_space(text, end)
    if end < len(text) and text[end] == "{":
        yield from jsonl.build(jsonl.Options(), path)
        return
    if end < len(text):
        raise broken(path, json.JSONDecodeError("Extra data", text, end))
    yield RawRow(need_object(value, path, "row 1"), Origin(str(path), 1))


def _list(text: str, position: int, path: Path) -> Iterator[RawRow]:
    position = _skip_space(text, position + 1)
    row = 0
    while not text.startswith("]", position):
        row += 1
        value, position = value_at(text, position, path, f"row {row}")
        yield RawRow(need_object(value, path, f"row {row}"), Origin(str(path), row))
        position = _skip_space(text, position)
        if text.startswith(",", position):
            position = _skip_space(text, position + 1)
            if text.startswith("]", position):
                raise broken(path, json.JSONDecodeError("Illegal trailing comma before end of list", text, position))
        elif not text.startswith("]", position):
            raise broken(path, json.JSONDecodeError("Expecting ',' or ']'", text, position))
    end = _skip_space(text, position + 1)
    if end < len(text):
        raise broken(path, json.JSONDecodeError("Extra data", text, end))


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None
    return match.end()
