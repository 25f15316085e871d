"""Functions an assistant may call, and its calls, as rows give them: objects, or JSON in text."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from luthier.data.columns import described, fields_found
from luthier.data.records import RowError, ToolCall, Tools


def tool_definitions(value: Any, where: str) -> Tools:
    """A row's tools; none where the field is missing, null or empty.

    A bare function ({"name": ..., "parameters": ...}) is wrapped as the chat API writes it, which is what templates read.

    Args:
        where: what to call the field in messages.

    Raises:
        RowError: broken JSON, or an entry that defines no function.
    """
    if value is None or value == "" or value == []:
        return ()
    parsed = _parsed(value, where)
    entries = [parsed] if isinstance(parsed, Mapping) else parsed
    if not isinstance(entries, list):
        raise RowError(f"{where} is {described(value)}, not a list of tool definitions.")
    found = []
    for index, entry in enumerate(entries):
        place = f"{where}[{index}]"
        if not isinstance(entry, Mapping):
            raise RowError(f"{place} is {described(entry)}, not a tool definition; give an object with 'name'.")
        function = entry.get("function", entry)
        if not isinstance(function, Mapping) or not _is_name(function.get("name")):
            raise RowError(f"{place} names no function; give it a 'name' (fields found: {fields_found(entry)}).")
        found.append(dict(entry) if "function" in entry else {"type": "function", "function": dict(entry)})
    return tuple({"type": "function", **entry} for entry in found)


def tool_calls(value: Any, where: str) -> tuple[ToolCall, ...]:
    """Calls in the chat API's layout or as bare {"name", "arguments"}; a single one needs no list.

    Raises:
        RowError: broken JSON, no function name, arguments that are not an object.
    """
    parsed = _parsed(value, where)
    entries = [parsed] if isinstance(parsed, Mapping) else parsed
    if not isinstance(entries, list) or not entries:
        raise RowError(
            f'{where} is {described(value)}, not a call {{"name": ..., "arguments": {{...}}}} or a list of them.'
        )
    return tuple(_call(entry, f"{where}[{index}]") for index, entry in enumerate(entries))


def _call(entry: Any, place: str) -> ToolCall:
    function = entry.get("function", entry) if isinstance(entry, Mapping) else None
    if not isinstance(function, Mapping) or not _is_name(function.get("name")):
        raise RowError(f'{place} is {described(entry)}, not a call {{"name": ..., "arguments": {{...}}}}.')
    arguments = function.get("arguments", function.get("parameters"))
    if arguments is None or arguments == "":
        arguments = {}
    arguments = _parsed(arguments, f"{place}.arguments")
    if not isinstance(arguments, Mapping):
        raise RowError(f"{place}.arguments is {described(arguments)}, not an object of arguments by name.")
    identity = entry.get("id")
    return ToolCall(function["name"], arguments, identity if isinstance(identity, str) else "")


def _parsed(value: Any, where: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        problem = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        place = f" at character {error.pos}" if isinstance(error, json.JSONDecodeError) else ""
        raise RowError(f"{where} is broken JSON ({problem}{place}): {described(value)}; mend it.") from error


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())
