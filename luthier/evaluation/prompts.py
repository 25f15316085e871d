"""From a record to a prompt and the answer that is right, where the record has one."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.config.data_section import DataEntry
from luthier.data.entries import load_entry
from luthier.data.records import Conversation, Document, Labelled, LabelledConversation, Message, Origin, Pair, Record
from luthier.data.rejecting import MEND, refuse
from luthier.evaluation.engine import Request
from luthier.evaluation.unanswered import MARK, marked
from luthier.foundation.errors import DataError


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt from a file.

    Args:
        label: the right answer; None where the row has none.
    """

    request: Request
    label: str | None
    origin: Origin


def load_records(entries: Sequence[DataEntry], seed: int = 0) -> list[Record]:
    """The rows of some entries that are to be answered, in the files' order; they may lack the last answer.

    Args:
        seed: of samples and of system prompts drawn from a list.

    Raises:
        DataError: files that can't be read, rows that can't be used, or none at all.
    """
    loaded = [load_entry(entry, "test", place, seed, None, change=marked) for place, entry in enumerate(entries)]
    refuse([item for part in loaded for item in part.rejected], remedy=MEND)
    records = [record for part in loaded for record in part.records]
    if not records:
        raise DataError("there is no row to predict.", "Name a file that has some.")
    return records


def prompts_of(records: Sequence[Record]) -> list[Prompt]:
    """Rows as prompts, numbered from 0."""
    return [prompt_of(record, row) for row, record in enumerate(records)]


def prompt_of(record: Record, row: int) -> Prompt:
    """A conversation up to its last answer; of a pair of answers the question that both follow, with the first turn of the
    better one, which a model is to write; of a text the text itself."""
    if isinstance(record, Document):
        return Prompt(Request(row, text=record.text), None, record.origin)
    if isinstance(record, Labelled):
        text = "\n\n".join(filter(None, (record.text, record.text_pair)))
        label = record.label if isinstance(record.label, str) else json.dumps(record.label, ensure_ascii=False)
        return Prompt(Request(row, (Message("user", text),)), label, record.origin)
    if isinstance(record, Pair):
        return Prompt(Request(row, record.prompt, record.tools), _said(record.chosen[0]), record.origin)
    return _before_the_answer(record, row)


def _before_the_answer(record: Conversation | LabelledConversation, row: int) -> Prompt:
    messages = record.messages
    last = max(place for place, message in enumerate(messages) if message.role == "assistant")
    label = _said(messages[last])
    if isinstance(record, LabelledConversation) and not record.label:
        label = None  # an answer that is not wanted is no right one
    return Prompt(Request(row, messages[:last], record.tools), label, record.origin)


def _said(message: Message) -> str | None:
    """An answer's text; where it only calls tools, those calls as JSON; None where there is none."""
    if message.content.strip() == MARK:
        return None
    if message.content.strip() or not message.tool_calls:
        return message.content or None
    calls = [{"name": call.name, "arguments": dict(call.arguments)} for call in message.tool_calls]
    return json.dumps(calls, ensure_ascii=False)
