"""Rows that ask and bring no answer. Formats are made for rows to learn from; here a mark stands where the answer would."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from luthier.config.data_section import DataEntry
from luthier.data.detection import matches
from luthier.data.layouts import OPENAI, SHAREGPT
from luthier.data.records import RawRow

MARK = "\u2063(no answer yet)\u2063"  # between invisible separators, so that no answer is taken for it
ANSWERS: Mapping[str, str] = {"instruction": "output", "prompt": "completion"}  # by the column that asks


def marked(entry: DataEntry, rows: Sequence[RawRow]) -> list[RawRow]:
    """The rows with a mark for an answer: behind a last turn that nobody answers, and in a column that no row has."""
    fields = {field for row in rows for field in row.values}
    missing = {} if matches(entry, rows) else _missing_columns(entry, fields)
    return [replace(row, values=_marked(entry, {**missing, **row.values})) for row in rows]


def _missing_columns(entry: DataEntry, fields: set[str]) -> dict[str, str]:
    for question, answer in ANSWERS.items():
        asked = entry.columns.get(question, question)
        if asked in fields and answer not in entry.columns and answer not in fields:
            return {answer: MARK}
    return {}


def _answered_elsewhere(entry: DataEntry, values: Mapping[str, Any]) -> set[str | None]:
    """Columns whose turns are answered in another column: the prompt by its completion, all by a pair of answers."""

    def has(part: str) -> bool:
        column = entry.columns.get(part, part)
        return column is not None and values.get(column) is not None

    if has("chosen") and has("rejected"):
        return set(values)
    return {entry.columns.get("prompt", "prompt")} if has("completion") else set()


def _marked(entry: DataEntry, values: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(values)
    for column in values.keys() - _answered_elsewhere(entry, values):
        value = values[column]
        last = value[-1] if isinstance(value, list) and value else None
        if not isinstance(last, Mapping):
            continue
        for layout in (SHAREGPT, OPENAI):
            role_key = entry.tags.get("role_tag", layout.role_key)
            content_key = entry.tags.get("content_tag", layout.content_key)
            asks = {name for name, role in layout.roles.items() if role in ("user", "tool")}
            asks |= {entry.tags[tag] for tag in ("user_tag", "observation_tag") if tag in entry.tags}
            answers = entry.tags.get("assistant_tag", "assistant")
            if last.get(role_key) in asks and content_key in last:
                found[column] = [*value, {role_key: answers, content_key: MARK}]
                break
    return found
