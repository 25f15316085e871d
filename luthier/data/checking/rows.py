"""A record of any kind as the texts that a check looks at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.records import (
    Document,
    Labelled,
    LabelledConversation,
    Message,
    Origin,
    Pair,
    Record,
)


@dataclass(frozen=True, slots=True)
class RowTexts:
    """A record's texts.

    Args:
        split: train, validation or test.
        question: what stands before the last answer, without the system prompt; of a document or a labelled text, all.
        answers: the last answers: one, both of a pair, none of a document or a labelled text.
        exchanges: (question, answer) of every turn that is an example to follow; not of a rejected answer.
        every: every text, the system prompt too.
        label: of a labelled text or a judged answer.
        notes: what its format mended.
    """

    origin: Origin
    split: str
    question: str
    answers: tuple[str, ...]
    exchanges: tuple[tuple[str, str], ...]
    every: tuple[str, ...]
    label: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def whole(self) -> str:
        """Question and answers."""
        return "\n".join((self.question, *self.answers))


def texts_of(record: Record, split: str) -> RowTexts:
    """The texts of a record."""
    if isinstance(record, Document):
        return RowTexts(record.origin, split, record.text, (), (), (record.text,))
    if isinstance(record, Labelled):
        parts = (record.text,) if record.text_pair is None else (record.text, record.text_pair)
        return RowTexts(record.origin, split, "\n".join(parts), (), (), parts, str(record.label))
    if isinstance(record, Pair):
        return _of_pair(record, split)
    end = _last_answer(record.messages)
    judged = isinstance(record, LabelledConversation)
    wanted = record.label if isinstance(record, LabelledConversation) else True
    return RowTexts(
        record.origin,
        split,
        _joined(record.messages[:end]),
        tuple(said(message) for message in record.messages[end:] if message.role == "assistant"),
        _exchanges(record.messages) if wanted else (),
        tuple(map(said, record.messages)),
        str(record.label) if judged and isinstance(record, LabelledConversation) else None,
        record.notes,
    )


def said(message: Message) -> str:
    """A turn's text; its calls as JSON where it has any."""
    calls = [json.dumps(call.as_dict()["function"], ensure_ascii=False) for call in message.tool_calls]
    return "\n".join(part for part in (message.content, *calls) if part)


def _of_pair(record: Pair, split: str) -> RowTexts:
    answers = (record.chosen, record.rejected)
    return RowTexts(
        record.origin,
        split,
        _joined(record.prompt),
        tuple(_joined(answer) for answer in answers),
        _exchanges((*record.prompt, *record.chosen))[-1:],
        tuple(said(message) for message in (*record.prompt, *record.chosen, *record.rejected)),
        notes=record.notes,
    )


def _last_answer(messages: Sequence[Message]) -> int:
    """The index of the last assistant turn, or the end where there is none."""
    return max((index for index, message in enumerate(messages) if message.role == "assistant"), default=len(messages))


def _joined(messages: Sequence[Message]) -> str:
    return "\n".join(said(message) for message in messages if message.role != "system")


def _exchanges(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    found = []
    question = ""
    for message in messages:
        if message.role == "assistant":
            found.append((question, said(message)))
        elif message.role == "user":
            question = message.content
    return tuple(found)
