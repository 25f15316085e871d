"""`luthier sql prepare`: a text-to-SQL data set made into training rows."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.plugins import PROMPT_STYLES
from luthier.data.records import Rejected
from luthier.data.rejecting import SHOWN_ROWS, write_rejected
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import write_json, write_text
from luthier.foundation.progress import say
from luthier.text2sql.layout import chosen_layout
from luthier.text2sql.preparing import prepared_rows


@dataclass(frozen=True)
class PreparedResult:
    """What was written.

    Args:
        rejected: the rows left out, in the file `rejected_file`.
    """

    out: str
    layout: str
    style: str
    rows: int
    databases: int
    rejected: int
    rejected_file: str | None
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        return {**self.__dict__, "notes": list(self.notes)}

    def text(self) -> str:
        """For the terminal."""
        lines = [
            f"{self.out}: {self.rows:,} rows on {self.databases:,} databases (layout {self.layout}, style {self.style})"
        ]
        if self.rejected:
            lines.append(f"{self.rejected:,} rows left out: {self.rejected_file} says why")
        return "\n".join(lines)


def prepare(
    out: str, settings: Mapping[str, Any], *, layout: str = "auto", style: str = "schema_sentences", invalid_rows: str
) -> PreparedResult:
    """Read a data set, and write its rows.

    Args:
        out: a .json or .jsonl file.
        settings: for the layout: path, and what else it takes.
        invalid_rows: error, or reject (they are left out, counted, and written beside `out`).

    Raises:
        UserError: the layout, the style or the file can't be used; DataError: with all rows that can't.
    """
    target = _target(out)
    if invalid_rows not in ("error", "reject"):
        raise UserError(f"--invalid-rows is {invalid_rows!r}.", "It is error or reject.")
    module = PROMPT_STYLES.load(style)
    writer = module.build(module.Options(name=style))
    found, dataset = chosen_layout(layout, settings)
    rows, without = prepared_rows(dataset, writer)
    rejected = [*dataset.rejected, *without]
    for note in dataset.notes:
        say(f"note: {note}")
    if rejected and invalid_rows == "error":
        raise _refusal(rejected)
    if not rows:
        raise DataError(
            f"no row is left of {settings['path']!r}.",
            f"{len(rejected):,} can't be used, the first: {rejected[0].reason}."
            if rejected
            else "It has no questions.",
        )
    _write(target, rows)
    beside = target.with_name(f"{target.stem}.rejected.jsonl")
    if rejected:
        write_rejected(beside, rejected)
    return PreparedResult(
        out=out,
        layout=found,
        style=style,
        rows=len(rows),
        databases=len({row["db_id"] for row in rows}),
        rejected=len(rejected),
        rejected_file=str(beside) if rejected else None,
        notes=tuple(dataset.notes),
    )


def _target(out: str) -> Path:
    path = Path(out).expanduser()
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"--out is {out!r}.", "Name a .json file (a list of rows) or a .jsonl file (one row a line).")
    return path


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix == ".json":
        write_json(path, rows)
    else:
        write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _refusal(rejected: Sequence[Rejected]) -> DataError:
    shown = "\n".join(f"  - {item.origin}: {item.reason}" for item in rejected[:SHOWN_ROWS])
    more = f"\n  and {len(rejected) - SHOWN_ROWS:,} more" if len(rejected) > SHOWN_ROWS else ""
    return DataError(
        f"{len(rejected):,} row{'s' if len(rejected) > 1 else ''} can't be used:\n{shown}{more}",
        "Mend them, or leave them out with --invalid-rows reject: they are counted and written to a file.",
    )
