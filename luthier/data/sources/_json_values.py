"""JSON values with the place of every fault: shared by the json and jsonl file types."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.data.columns import described
from luthier.foundation.errors import DataError


class _DuplicateKeyError(ValueError):
    pass


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two equal keys Python's parser would keep the last without a word."""
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                raise _DuplicateKeyError(key)
            seen.add(key)
    return value


_DECODER = json.JSONDecoder(object_pairs_hook=_object)


def value_at(text: str, position: int, path: Path, row: str, first_line: int = 1) -> tuple[Any, int]:
    """The JSON value that starts at `position`, and where it ends.

    Args:
        row: what to call the value in messages ("row 3").
        first_line: number of the text's first line in the file.

    Raises:
        DataError: broken JSON (line and column), a key that stands twice, nesting too deep to read, a number too long.
    """
    try:
        return _DECODER.raw_decode(text, position)
    except json.JSONDecodeError as error:
        raise broken(path, error, first_line) from error
    except _DuplicateKeyError as error:
        raise DataError(
            f"{path}, {row}: the key {str(error)!r} stands twice in one object.", "Remove or rename one of the two."
        ) from error
    except ValueError as error:  # Python's guard: reading n digits takes n * n steps
        digits = sys.get_int_max_str_digits()
        raise DataError(
            f"{path}, {row}: a number of more than {digits:,} digits.", "Write it as text, or leave it out."
        ) from error
    except RecursionError as error:
        raise DataError(f"{path}, {row}: nested too deeply to be read.", "A row is a flat object of fields.") from error


def broken(path: Path, error: json.JSONDecodeError, first_line: int = 1) -> DataError:
    """What to raise for a syntax error."""
    line = error.lineno + first_line - 1
    context = error.doc[max(0, error.pos - 20) : error.pos + 20]
    return DataError(
        f"{path} is broken JSON at line {line}, column {error.colno}: {error.msg}, near {context!r}.",
        "Mend that place; a file cut off while being written ends in the middle of a row.",
    )


def need_object(value: Any, path: Path, row: str) -> Mapping[str, Any]:
    """A row's value, which must be an object.

    Raises:
        DataError: it is something else.
    """
    if not isinstance(value, dict):
        raise DataError(
            f"{path}, {row}: a row must be an object of fields, found {described(value)}.",
            'For instance {"instruction": "...", "output": "..."}, or {"text": "..."}.',
        )
    return value
