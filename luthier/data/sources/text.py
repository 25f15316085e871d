"""Plain text: one document per line, or, where the file has empty lines, one document per block between them.

One document per line is what LLaMA-Factory and Hugging Face's `text` loader read; a file with empty lines (prose, code)
means its line breaks, so a block keeps them. Empty lines at the end of the file don't count.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from luthier.config.sections import PluginOptions
from luthier.data.records import Origin, RawRow
from luthier.data.sources._decoding import read_lines

SUFFIXES = (".txt", ".text")


class Options(PluginOptions):
    """No settings."""

    name: Literal["text"] = "text"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """Documents as rows with the one field `text`; `Origin.row` is the document's first line.

    Raises:
        DataError: not UTF-8, NUL bytes.
    """
    in_blocks = _has_empty_lines(path)
    block: list[str] = []
    start = 1
    for number, line in read_lines(path):
        text = line.rstrip("\r\n")
        if not in_blocks:
            if text.strip():
                yield _row(text, path, number)
        elif text.strip():
            start = start if block else number
            block.append(text)
        elif block:
            yield _row("\n".join(block), path, start)
            block = []
    if block:
        yield _row("\n".join(block), path, start)


def _row(text: str, path: Path, line: int) -> RawRow:
    return RawRow({"text": text}, Origin(str(path), line))


def _has_empty_lines(path: Path) -> bool:
    empty_seen = text_seen = False
    for _, line in read_lines(path):
        if line.strip():
            if empty_seen and text_seen:
                return True
            text_seen = True
        else:
            empty_seen = text_seen
    return False
