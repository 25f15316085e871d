"""Files as bytes, `.gz` and `.zst` ones decompressed on the way, with a limit on what a small file may grow into."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from luthier.foundation.errors import DataError
from luthier.foundation.files import human_bytes

SUFFIXES = (".gz", ".zst")
# text shrinks to a tenth, very repetitive text to a fiftieth; a bomb's gzip grows a thousandfold, its zstd more
LARGEST_RATIO = 200
ALWAYS_ALLOWED_BYTES = 64 * 1024 * 1024


def inner_path(path: Path) -> Path:
    """The path without `.gz` or `.zst`: its suffix names the file type."""
    return path.with_suffix("") if path.suffix.lower() in SUFFIXES else path


@contextmanager
def open_bytes(path: Path) -> Iterator[BinaryIO]:
    """A buffered stream over a file's bytes, decompressed where its suffix says so; constant memory.

    Raises:
        DataError: while reading: not what the suffix says, cut off, or over 64 MiB and 200 times its compressed size.
    """
    if path.suffix.lower() not in SUFFIXES:
        with path.open("rb") as plain:
            yield plain
        return
    try:
        with _decompressor(path) as inner, io.BufferedReader(_Limited(inner, path), io.DEFAULT_BUFFER_SIZE) as stream:
            yield stream
    except (OSError, EOFError, zlib.error) as error:
        kind = path.suffix.lower().removeprefix(".")
        raise DataError(
            f"{path} can't be decompressed as {kind}: {error}.", "Was the file copied or written completely?"
        ) from error


def _decompressor(path: Path) -> Any:
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    import pyarrow

    return pyarrow.input_stream(str(path), compression="zstd")


class _Limited(io.RawIOBase):
    """A decompressor's output, refused where it grows beyond reason."""

    def __init__(self, inner: Any, path: Path) -> None:
        self._inner, self._path, self._read = inner, path, 0
        self._limit = max(ALWAYS_ALLOWED_BYTES, LARGEST_RATIO * path.stat().st_size)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        view = memoryview(buffer)
        block = self._inner.read(len(view))
        view[: len(block)] = block
        self._read += len(block)
        if self._read > self._limit:
            raise DataError(
                f"{self._path} ({human_bytes(self._path.stat().st_size)}) decompresses to more than "
                f"{human_bytes(self._limit)}, over {LARGEST_RATIO} times its size: a decompression bomb.",
                "If it is what you want to train on, decompress it yourself and name the result.",
            )
        return len(block)
