"""JSONL: one JSON object per line; empty lines are passed over. A file that in truth holds a list is read as JSON."""

from __future__ import annotations

import json as standard_json
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.data.records import Origin, RawRow
from luthier.data.sources._decoding import read_lines
from luthier.data.sources._json_values import broken, need_object, value_at

SUFFIXES = (".jsonl", ".ndjson")


class Options(PluginOptions):
    """No settings."""

    name: Literal["jsonl"] = "jsonl"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """The rows; `Origin.row` is the line.

    Raises:
        DataError: broken JSON (line and column), a line that is no object, not UTF-8.
    """
    started = False
    for number, ended in read_lines(path):
        line = ended.rstrip("\r\n")
        stripped = line.strip(" \t\r\n")
        if not stripped:
            continue
        if not started and stripped.startswith("["):
            from luthier.data.sources import json

            yield from json.build(json.Options(), path)
            return
        started = True
        start = len(line) - len(line.lstrip(" \t\r\n"))
        value, end = value_at(line, start, path, f"line {number}", first_line=number)
        rest = line[end:].lstrip(" \t")
        if rest:
            error = standard_json.JSONDecodeError("Extra data", line, len(line) - len(rest))
            raise broken(path, error, first_line=number)
        yield RawRow(need_object(value, path, f"line {number}"), Origin(str(path), number))
