"""Plain text: the column `text`, or the only column there is. Chosen where no other format matches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import FormatOptions, text_of
from luthier.data.records import Document, RawRow, RowError

RECORD = Document
FALLBACK = True


class Options(FormatOptions):
    """Columns of a row of text."""

    PARTS: ClassVar[Mapping[str, str]] = {"text": "text"}
    REQUIRED: ClassVar[tuple[str, ...]] = ("text",)
    TAKES_SYSTEM: ClassVar[bool] = False
    name: Literal["text"] = "text"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has a text column, or one column only, which holds text."""
    column = options.column("text")
    if isinstance(sample.get(column), str):
        return options, f"has the column {column}"
    if options.columns or len(sample) != 1:
        return None
    column, value = next(iter(sample.items()))
    if not isinstance(value, str):
        return None
    return options.model_copy(update={"columns": {"text": column}}), f"{column} is the only column, and holds text"


def build(options: Options) -> Callable[[RawRow], Document]:
    """A function from a row to a document, which raises `RowError`."""

    def convert(row: RawRow) -> Document:
        text = text_of(row, options, "text")
        if not text.strip():
            raise RowError(f"the field {options.column('text')!r} is empty.")
        return Document(text, row.origin)

    return convert
