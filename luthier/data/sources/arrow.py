"""Arrow IPC: the file layout, and the stream layout that Hugging Face `datasets` writes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from luthier.config.sections import PluginOptions
from luthier.data.records import Origin, RawRow
from luthier.data.sources._arrow_rows import rows_of
from luthier.foundation.errors import DataError

SUFFIXES = (".arrow", ".feather")
BINARY = True
FILE_MAGIC = b"ARROW1"
CONTINUES = b"\xff\xff\xff\xff"
# every writer since 2019 ends a stream with it, though the specification lets it be left out; without it nobody can
# tell whether batches are missing
END_MARK = CONTINUES + b"\0\0\0\0"


class Options(PluginOptions):
    """No settings."""

    name: Literal["arrow"] = "arrow"


def build(options: Options, path: Path) -> Iterator[RawRow]:
    """The rows; `Origin.row` is the position in the file, from 1.

    Raises:
        DataError: neither layout, or a damaged file.
    """
    import pyarrow

    row = 0
    try:
        with pyarrow.memory_map(str(path)) as stream:
            for batch in _batches(stream):
                for values in rows_of(batch):
                    row += 1
                    yield RawRow(values, Origin(str(path), row))
    except (pyarrow.ArrowException, OSError, EOFError) as error:
        raise DataError(
            f"{path} can't be read as an Arrow file or stream after row {row}: {error}.",
            "Was the file copied or written completely?",
        ) from error


def _batches(stream: Any) -> Iterator[Any]:
    import pyarrow

    magic = stream.read(len(FILE_MAGIC))
    stream.seek(0)
    if magic == FILE_MAGIC:
        reader = pyarrow.ipc.open_file(stream)
        for index in range(reader.num_record_batches):
            yield reader.get_batch(index)
    else:
        yield from pyarrow.ipc.open_stream(stream)
        stream.seek(stream.size() - len(END_MARK))
        if magic.startswith(CONTINUES) and stream.read() != END_MARK:
            raise EOFError("the end-of-stream mark is missing, so batches may be")
