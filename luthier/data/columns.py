"""Where a row's parts stand: the mapping from a format's own names to a file's columns."""

from __future__ import annotations

import math
import reprlib
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, TypeGuard

from pydantic import Field, model_validator

from luthier.config.sections import PluginOptions
from luthier.data.records import RawRow, RowError
from luthier.foundation.registry import nearest

NOWHERE = "\u2063(no column)\u2063"  # between invisible separators, so that no column bears the name
SHOWN_CHARACTERS = 60
SHOWN_FIELDS = 20
# what other tools and data sets call the parts; used only to suggest a mapping, never to read a row
SYNONYMS: Mapping[str, tuple[str, ...]] = {
    "instruction": ("question", "prompt", "query", "ask", "problem", "user", "human", "request", "q"),
    "output": ("answer", "response", "completion", "target", "reply", "solution", "assistant", "gpt", "a"),
    "messages": ("dialog", "dialogue", "chat", "conversation", "turns"),
    "conversations": ("dialog", "dialogue", "chat", "conversation", "turns"),
    "text": ("content", "document", "body", "article", "passage", "abstract"),
    "prompt": ("question", "query", "input", "problem"),
    "chosen": ("preferred", "accepted", "better", "winner", "response_chosen"),
    "rejected": ("dispreferred", "worse", "loser", "response_rejected"),
    "label": ("labels", "class", "category", "sentiment", "kto_tag", "target"),
}


class FormatOptions(PluginOptions):
    """Base of every format's `Options`."""

    PARTS: ClassVar[Mapping[str, str]] = {}
    """The format's own names for a row's parts, and the column each stands in by default."""
    REQUIRED: ClassVar[tuple[str, ...]] = ()
    NEEDS: ClassVar[str] = ""
    """What a row must have, where that is more than the required columns; shown where no format matches."""
    TAKES_SYSTEM: ClassVar[bool] = True

    columns: dict[str, str | None] = Field(
        default_factory=dict,
        description="Where a row's parts stand, by the format's own names; null: nowhere, whatever the columns are called.",
    )
    system: str | None = Field(None, description="System prompt for rows that bring none.")

    @model_validator(mode="after")
    def _known_parts(self) -> FormatOptions:
        for part in self.columns:
            if part not in self.PARTS:
                close = nearest(part, self.PARTS)
                hint = f" (did you mean {close[0]}?)" if close else ""
                raise ValueError(
                    f"columns: the format {self.name} knows no {part!r}{hint}; it knows: {', '.join(self.PARTS)}"
                )
            if self.columns[part] is None and part in self.REQUIRED:
                raise ValueError(f"columns: the format {self.name} can't do without {part}; name its column")
        if self.system is not None and not self.TAKES_SYSTEM:
            raise ValueError("system: plain text has no system prompt; remove it")
        return self

    @classmethod
    def needs(cls) -> str:
        """What a row must have, in words."""
        return cls.NEEDS or " and ".join(cls.PARTS[part] for part in cls.REQUIRED)

    def column(self, part: str) -> str:
        """The column a part stands in; `NOWHERE`, which no row has, where it is said to stand in none."""
        found = self.columns.get(part, self.PARTS[part])
        return NOWHERE if found is None else found

    def lacks(self, fields: Iterable[str]) -> list[str]:
        """Required columns that are not among the fields."""
        present = set(fields)
        return [column for part in self.REQUIRED if (column := self.column(part)) not in present]

    def used(self) -> set[str]:
        """Columns the format reads."""
        return {self.column(part) for part in self.PARTS}


def value_of(row: RawRow, options: FormatOptions, part: str) -> Any:
    """A part's value, None where the row lacks it.

    Raises:
        RowError: the part is required and the field is missing.
    """
    column = options.column(part)
    if column not in row.values and part in options.REQUIRED:
        raise RowError(
            f"lacks the field {column!r} (the format {options.name}'s {part}); fields found: "
            f"{fields_found(row.values)}. Give it, or say where it stands with columns: {{{part}: ...}}."
        )
    return row.values.get(column)


def text_of(row: RawRow, options: FormatOptions, part: str) -> str:
    """A part that is text; "" where it is optional and missing or null.

    Raises:
        RowError: missing, null or no text.
    """
    value = value_of(row, options, part)
    if value is None and part not in options.REQUIRED:
        return ""
    return checked_text(value, f"the field {options.column(part)!r}")


def checked_text(value: Any, where: str) -> str:
    """`value` if it is text that can be encoded.

    Raises:
        RowError: another type, or half of a surrogate pair.
    """
    if not isinstance(value, str):
        raise RowError(f"{where} is {described(value)}, not text.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RowError(
                f"{where} holds half of a surrogate pair (U+{ord(value[error.start]):04X} at character {error.start}), "
                "which is no text; the file was written with broken escapes."
            ) from error
    return value


_REPR = reprlib.Repr()  # of a value of any size or depth, in no time
_REPR.maxstring = _REPR.maxlong = _REPR.maxother = SHOWN_CHARACTERS


def shown(value: Any) -> str:
    """A value for messages, cut where it is long."""
    text = _REPR.repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 3] + "..."


def described(value: Any) -> str:
    """A value for messages, after its type."""
    return f"{type(value).__name__} {shown(value)}"


def fields_found(fields: Iterable[Any]) -> str:
    """The names of fields for messages, the first ones."""
    names = [str(field)[:SHOWN_CHARACTERS] for field in fields]
    more = f" and {len(names) - SHOWN_FIELDS} more" if len(names) > SHOWN_FIELDS else ""
    return ", ".join(names[:SHOWN_FIELDS]) + more or "none"


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a value is a number that a float can hold (JSON's may have hundreds of digits)."""
    try:
        return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:
        return False


def suggest(fields: Iterable[str], parts: Iterable[str]) -> dict[str, str]:
    """A mapping of required parts to fields that are probably meant, as far as the names tell."""
    by_lower = {field.lower(): field for field in fields}
    found: dict[str, str] = {}
    for part in parts:
        for name in (part, *SYNONYMS.get(part, ())):
            if name in by_lower and by_lower[name] not in found.values():
                found[part] = by_lower[name]
                break
    return found
