"""Questions made into training rows {db_id, instruction, input, output, history}."""

from __future__ import annotations

from typing import Any

from luthier.data.records import Rejected
from luthier.text2sql.layout import Dataset, Question
from luthier.text2sql.style import Context, Style


def prepared_rows(dataset: Dataset, style: Style) -> tuple[list[dict[str, Any]], list[Rejected]]:
    """A row for each question that has a query, in order; and the questions that can't become one."""
    rows, rejected = [], []
    instructions: dict[str, str] = {}  # thousands of questions share few schemas
    for question in dataset.questions:
        if question.query is None:
            rejected.append(Rejected(question.origin, "has no query to learn", _values(question)))
            continue
        if question.db_id not in instructions:
            instructions[question.db_id] = style.instruction(Context(dataset.schemas[question.db_id]))
        rows.append(row(question, instructions[question.db_id], style))
    return rows, rejected


def row(question: Question, instruction: str, style: Style) -> dict[str, Any]:
    """One row, as luthier's format text_to_sql and DB-GPT-Hub read it."""
    return {
        "db_id": question.db_id,
        "instruction": instruction,
        "input": style.input(question),
        "output": question.query or "",
        "history": [[style.input(_asked(question, text)), query] for text, query in question.history],
    }


def _asked(question: Question, text: str) -> Question:
    return Question(question.db_id, text, None, question.origin)


def _values(question: Question) -> dict[str, Any]:
    return {"db_id": question.db_id, "question": question.text}
