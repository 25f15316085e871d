"""How a schema and a question are put to a model. A plug-in in `luthier/text2sql/styles` keeps to this contract.

A plug-in holds `Options` and `build(options) -> Style`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from luthier.text2sql.layout import Question
from luthier.text2sql.schema import Schema


@dataclass(frozen=True, slots=True)
class Context:
    """What a model is told beside the question.

    Args:
        schema: the question's database, or the part of it that is shown.
    """

    schema: Schema


class Style(Protocol):
    """A way of writing prompts."""

    def instruction(self, context: Context) -> str:
        """What stands before the question: the task and the schema."""
        ...

    def input(self, question: Question) -> str:
        """The question itself."""
        ...
