"""Text to SQL: db_id, instruction (with the schema), input (the question), output (the SQL), and history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from luthier.data.columns import text_of
from luthier.data.formats._instructions import InstructionOptions, answered
from luthier.data.records import Conversation, RawRow, RowError

RECORD = Conversation


class Options(InstructionOptions):
    """Columns of a text-to-SQL row."""

    PARTS: ClassVar[Mapping[str, str]] = {"db_id": "db_id", **InstructionOptions.PARTS}
    REQUIRED: ClassVar[tuple[str, ...]] = ("db_id", "instruction", "output")
    name: Literal["text_to_sql"] = "text_to_sql"


def detect(sample: Mapping[str, Any], options: Options) -> tuple[Options, str] | None:
    """The options and the reason, if the file has the columns of a database, an instruction and an output."""
    if options.lacks(sample):
        return None
    return options, f"has the columns {', '.join(options.column(part) for part in options.REQUIRED)}"


def build(options: Options) -> Callable[[RawRow], Conversation]:
    """A function from a row to a conversation, which raises `RowError`."""

    def convert(row: RawRow) -> Conversation:
        if not text_of(row, options, "db_id").strip():
            raise RowError(f"the field {options.column('db_id')!r} is empty; it names the question's database.")
        return answered(row, options)

    return convert
