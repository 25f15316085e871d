"""`luthier sql prepare`: a text-to-SQL data set made into training rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.commands.sql_reading import Reading, counter, read
from luthier.data.rejecting import refuse, write_rejected
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import need_apart, need_place, write_json, write_text
from luthier.text2sql.preparing import Row


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
        databases = f"{self.databases:,} database{'' if self.databases == 1 else 's'}"
        lines = [f"{self.out}: {self.rows:,} rows on {databases} (layout {self.layout}, style {self.style})"]
        if self.rejected:
            lines.append(f"{self.rejected:,} rows left out: {self.rejected_file} says why")
        return "\n".join(lines)


def prepare(
    out: str,
    reading: Reading,
    *,
    tokenizer: str | None = None,
    template: str = "auto",
    queries: bool = True,
    invalid_rows: str = "error",
) -> PreparedResult:
    """Read a data set, and write its rows.

    Args:
        out: a .json or .jsonl file.
        tokenizer, template: a model whose tokens a length is counted in.
        queries: whether the rows are to be learnt; else their outputs stay empty.
        invalid_rows: error, or reject (they are left out, counted, and written beside `out`).

    Raises:
        UserError: the layout, the style or a file can't be used; DataError: with all rows that can't.
    """
    target = _target(out)
    if invalid_rows not in ("error", "reject"):
        raise UserError(f"--invalid-rows is {invalid_rows!r}.", "It is error or reject.")
    found = read(reading, _counter(tokenizer, template, reading.told.max_length), queries=queries)
    need_apart(target, "--out", {question.origin.path for question in found.dataset.questions})
    if invalid_rows == "error":
        refuse(
            found.rejected,
            remedy="Mend them, or leave them out with --invalid-rows reject: they are counted and written to a file.",
        )
    if not found.rows:
        first = (
            f"{len(found.rejected):,} can't be used, the first: {found.rejected[0].reason}." if found.rejected else ""
        )
        path = reading.settings["path"]
        raise DataError(
            f"there is no question to make a row of{'' if path.startswith('env:') or '://' in path else f' in {path!r}'}.",
            first or "Name files of questions with --questions; `luthier sql predict --question` asks without a file.",
        )
    _write(target, found.rows)
    beside = target.with_name(f"{target.stem}.rejected.jsonl")
    if found.rejected:
        write_rejected(beside, found.rejected)
    return PreparedResult(
        out=out,
        layout=found.layout,
        style=reading.style,
        rows=len(found.rows),
        databases=len({row["db_id"] for row in found.rows}),
        rejected=len(found.rejected),
        rejected_file=str(beside) if found.rejected else None,
        notes=found.notes,
    )


def _counter(tokenizer: str | None, template: str, max_length: int | None) -> Callable[[Row], int] | None:
    """What counts a row's tokens, where they are limited."""
    if max_length is None:
        if tokenizer is not None or template != "auto":
            raise UserError("--tokenizer and --template have no effect without --max-length.", "Leave them out.")
        return None
    if tokenizer is None:
        raise UserError("--max-length counts tokens, and no tokenizer is named.", "Name the model: --tokenizer MODEL.")
    return counter(tokenizer, template)


def _target(out: str) -> Path:
    path = Path(out).expanduser()
    if path.suffix not in (".json", ".jsonl"):
        raise UserError(f"--out is {out!r}.", "Name a .json file (a list of rows) or a .jsonl file (one row a line).")
    return need_place(path, "--out")


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix == ".json":
        write_json(path, rows)
    else:
        write_text(path, "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))
