"""How a schema and a question are put to a model. A plug-in in `luthier/text2sql/styles` keeps to this contract.

A plug-in holds `Options` and `build(options) -> Style`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from luthier.text2sql.layout import Question
from luthier.text2sql.schema import Schema
from luthier.text2sql.values import FoundValue

_BREAKS = re.compile(r"\s*[\r\n]\s*")
LONGEST_SHOWN = 40  # characters of a value in a prompt


@dataclass(frozen=True, slots=True)
class Context:
    """What a model is told beside the question.

    Args:
        schema: the question's database, or the part of it that is shown.
        rows: the first rows of each table, by its name, with the columns that the schema has.
        values: values of the database that the question names.
        examples: similar questions with their queries, the most similar last.
        meanings: whether columns are told with what their names do not say.
    """

    schema: Schema
    rows: Mapping[str, Sequence[Sequence[Any]]] = field(default_factory=dict)
    values: Sequence[FoundValue] = ()
    examples: Sequence[Question] = ()
    meanings: bool = False


class Style(Protocol):
    """A way of writing prompts."""

    def instruction(self, context: Context) -> str:
        """What stands before the question: the task and the schema."""
        ...

    def input(self, question: Question) -> str:
        """The question itself."""
        ...


def literal(value: Any) -> str:
    """A value as SQL writes it; a long text is cut."""
    if value is None:
        return "NULL"
    if isinstance(value, (int, float)):
        return str(value)
    if isinstance(value, (bytes, memoryview)):
        return f"({len(value)} bytes)"
    text = " ".join(str(value).split())
    shown = text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
    return "'" + shown.replace("'", "''") + "'"


def one_line(text: str) -> str:
    """A text without line breaks; what else stands in it, such as the blanks of a literal, stays."""
    return _BREAKS.sub(" ", text.strip())
