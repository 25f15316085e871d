"""Rows of Arrow tables: shared by the arrow and parquet file types and by a hub's set that streams."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

Change = Callable[[Any], Any]


def rows_of(table: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table or a record batch.

    Columns of Arrow's type JSON hold JSON text, at any depth; the rows have what it says. `datasets` makes a column one
    where its values differ in kind from row to row, or its objects in their keys.

    Objects inside a column are without their nulls: in Arrow all have one type, so what one of them lacks and another
    has is a null in it, and an argument of one function would be learnt as a null of every other's call.
    """
    changes = {field.name: change for field in table.schema if (change := _change(field.type)) is not None}
    for row in table.to_pylist():
        for name, change in changes.items():
            row[name] = change(row[name])
        yield row


def _change(kind: Any) -> Change | None:
    """What turns a value of an Arrow type into what it stands for; None where it does already."""
    import pyarrow

    if isinstance(kind, pyarrow.JsonType):
        return _parsed
    if pyarrow.types.is_struct(kind):
        changes = {field.name: change for field in kind if (change := _change(field.type)) is not None}
        return lambda value: None if value is None else _object(value, changes)
    change = _change(kind.value_type) if _is_list(kind) else None
    return None if change is None else lambda value: None if value is None else [change(item) for item in value]


def _is_list(kind: Any) -> bool:
    from pyarrow import types

    tests = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(test(kind) for test in tests)


def _object(value: dict[str, Any], changes: dict[str, Change]) -> dict[str, Any]:
    given = ((name, item) for name, item in value.items() if item is not None)
    return {name: changes[name](item) if name in changes else item for name, item in given}


def _parsed(text: str | None) -> Any:
    """The value that JSON text stands for; `datasets` leaves a text beside it that is no JSON as it is."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
