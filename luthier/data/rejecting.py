"""Rows that can't be used: all told at once, or written to rejected.jsonl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from luthier.data.records import Rejected
from luthier.foundation.errors import DataError
from luthier.foundation.files import write_text

SHOWN_ROWS = 20
OR_REJECT = "Mend them, or set data.invalid_rows to reject: they are counted, left out and written to rejected.jsonl."
MEND = "Mend them, or leave them out of the file."  # where no setting leaves them out


def rejected_line(item: Rejected) -> dict[str, Any]:
    """A rejected row as a line of rejected.jsonl: file, row, reason and the row's values."""
    line = {"file": item.origin.path, "row": item.origin.row, "reason": item.reason, "values": dict(item.values)}
    return dict(json.loads(json.dumps(line, default=str), parse_constant=str))


def write_rejected(path: Path, rejected: Sequence[Rejected]) -> None:
    """Write rows that were left out as JSONL."""
    write_text(path, "".join(f"{json.dumps(rejected_line(item))}\n" for item in rejected))


def refuse(rejected: Sequence[Rejected], invalid_rows: str = "error", remedy: str = OR_REJECT) -> None:
    """Raise one `DataError` for all bad rows, unless they are to be rejected and counted."""
    if not rejected or invalid_rows == "reject":
        return
    shown = "\n".join(f"  - {item.origin}: {item.reason}" for item in rejected[:SHOWN_ROWS])
    more = f"\n  and {len(rejected) - SHOWN_ROWS:,} more" if len(rejected) > SHOWN_ROWS else ""
    raise DataError(f"{len(rejected):,} row{'s' if len(rejected) > 1 else ''} can't be used:\n{shown}{more}", remedy)
