"""How many tokens a row has, in the chat template that it will be put into."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from luthier.data.formats import text_to_sql
from luthier.data.records import Conversation, Origin, RawRow
from luthier.text2sql.preparing import Row

if TYPE_CHECKING:
    from luthier.data.rendering import Renderer

ANSWER_TOKENS = 128  # 99 of 100 Spider queries have less, in SmolLM2's tokens; the longest has 251


def conversation_of(row: Row, number: int) -> Conversation:
    """A prepared row as the format text_to_sql reads it.

    Raises:
        RowError: it can't be read so.
    """
    return text_to_sql.build(text_to_sql.Options())(RawRow(row, Origin("the row", number)))


def token_counter(renderer: Renderer) -> Callable[[Row], int]:
    """A function from a row to the tokens of its prompt and `ANSWER_TOKENS` for the answer.

    The row's own answer is not counted: a prompt must not depend on the query that is asked for.
    """
    return lambda row: len(renderer.prompt_ids(conversation_of(row, 1).messages[:-1])) + ANSWER_TOKENS
