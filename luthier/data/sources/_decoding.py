"""Text files line by line: UTF-8 or an error that names the byte."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from luthier.data.sources._compressed import open_bytes
from luthier.foundation.errors import DataError

BOM = b"\xef\xbb\xbf"
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


def decode(raw: bytes, path: Path, offset: int, line: int) -> str:
    """UTF-8 bytes that start `offset` bytes into the file, in line `line`, as text.

    Raises:
        DataError: not UTF-8, or NUL bytes, with the byte's offset and line.
    """
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line += raw[: error.start].count(b"\n")
        raise DataError(
            f"{path} is not UTF-8 text: byte {offset + error.start} (line {line}) is 0x{raw[error.start]:02x}.",
            "Save it as UTF-8, for instance with: iconv -f ENCODING -t UTF-8.",
        ) from error
    place = text.find("\0")
    if place >= 0:
        line += text.count("\n", 0, place)
        place = offset + len(text[:place].encode("utf-8"))
        raise DataError(
            f"{path} has a NUL byte at byte {place} (line {line}), so it is no text file.",
            "Is it binary, UTF-16, or was it cut off while being written?",
        )
    return text


def _refuse_utf16(start: bytes, path: Path) -> None:
    if start.startswith(UTF16_MARKS):
        raise DataError(
            f"{path} is not UTF-8 text: byte 0 starts a UTF-16 byte order mark.",
            "Save it as UTF-8, for instance with: iconv -f UTF-16 -t UTF-8.",
        )


def read_text(path: Path) -> str:
    """A whole file as text, a UTF-8 byte order mark removed."""
    with open_bytes(path) as stream:
        raw = stream.read()
    _refuse_utf16(raw, path)
    skip = len(BOM) if raw.startswith(BOM) else 0
    return decode(raw[skip:], path, skip, 1)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line with its line ending), a UTF-8 byte order mark removed; constant memory."""
    offset = 0
    with open_bytes(path) as stream:
        for number, raw in enumerate(stream, 1):
            start = offset
            offset += len(raw)
            if number == 1:
                _refuse_utf16(raw, path)
                if raw.startswith(BOM):
                    raw, start = raw[len(BOM) :], len(BOM)
            yield number, decode(raw, path, start, number)
