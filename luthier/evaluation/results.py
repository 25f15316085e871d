"""An evaluation as files: OUT, one JSON object with the numbers, and OUT's rows beside it, JSON lines, which comparisons read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luthier.evaluation.measuring import Number
from luthier.foundation.errors import UserError
from luthier.foundation.files import finite, write_json, write_text

KIND = "luthier evaluation"
FORMAT_VERSION = 1
NEEDED = ("model", "task", "rows", "metrics", "settings", "rows_file")  # by a comparison


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Args:
        model: as it was named. task: text, or what the model's head gives: single_label, multi_label, regression.
        sources: each entry's name, rows and, where the loss was taken, targets, loss and perplexity.
        numbers: the loss and the metrics.
        rows: each with source, file and row of the data; and, of what there is, prediction, reference, scores, nll, weight.
        settings: confidence, resamples, seed, and how answers were generated.
        finish_reasons: how many answers ended for each reason.
    """

    model: str
    task: str
    sources: Sequence[Mapping[str, Any]]
    numbers: Sequence[Number]
    rows: Sequence[Mapping[str, Any]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    finish_reasons: Mapping[str, int] = field(default_factory=dict)
    remarks: Sequence[str] = ()
    out: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """All but the rows."""
        return {
            "kind": KIND,
            "format_version": FORMAT_VERSION,
            "model": self.model,
            "task": self.task,
            "rows": len(self.rows),
            "sources": [dict(source) for source in self.sources],
            "metrics": {number.name: number.as_dict() for number in self.numbers},
            "settings": dict(self.settings),
            "finish_reasons": dict(self.finish_reasons),
            "remarks": list(self.remarks),
            "out": self.out,
        }

    def write(self, out: Path) -> None:
        """Both files, the numbers last; null stands for a number that is not finite."""
        out.parent.mkdir(parents=True, exist_ok=True)
        lines = (json.dumps(finite(dict(row)), ensure_ascii=False, allow_nan=False) for row in self.rows)
        write_text(rows_path(out), "".join(f"{line}\n" for line in lines))
        write_json(out, {**finite(self.as_dict()), "rows_file": rows_path(out).name})

    def told_not_finite(self) -> Evaluated:
        """With a remark on what is not finite, where anything is."""
        names = [number.name for number in self.numbers if not math.isfinite(number.value)]
        rows = sum(finite(dict(row)) != dict(row) for row in self.rows)
        if not names and not rows:
            return self
        what = f"{', '.join(names)} and numbers of {rows:,} rows are" if names else f"numbers of {rows:,} rows are"
        remark = f"{what} not finite (the model's weights or its precision may be broken): null in JSON"
        return replace(self, remarks=[*self.remarks, remark])


def rows_path(out: Path) -> Path:
    """Where an evaluation's rows stand."""
    return out.with_name(f"{out.name.removesuffix('.json')}.rows.jsonl")


def predictions_path(out: Path) -> Path:
    """Where an evaluation's answers stand, which `--predictions` takes again."""
    return out.with_name(f"{out.name.removesuffix('.json')}.predictions.jsonl")


def verdicts_path(out: Path) -> Path:
    """Where a judge's verdicts stand until the evaluation is written."""
    return out.with_name(f"{out.name.removesuffix('.json')}.verdicts.partial")


@dataclass(frozen=True)
class Saved:
    """An evaluation read back: its numbers as plain values, and its rows."""

    path: Path
    values: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]


def read_evaluation(path: Path) -> Saved:
    """An evaluation's two files.

    Raises:
        UserError: they are not there, or not what `luthier evaluate --out` writes.
    """
    values = _object(path)
    if values.get("kind") != KIND:
        raise UserError(f"{path} is no evaluation.", "Name a file that `luthier evaluate ... --out FILE` wrote.")
    lacking = [key for key in ("format_version", *NEEDED) if key not in values]
    if lacking:
        raise UserError(f"{path} lacks {', '.join(lacking)}.", "Evaluate again: the file was changed.")
    if values["format_version"] > FORMAT_VERSION:
        raise UserError(
            f"{path} has format_version {values['format_version']}; this luthier reads up to {FORMAT_VERSION}.",
            "Read it with the luthier that wrote it, or a later one.",
        )
    rows = read_lines(path.with_name(str(values["rows_file"])))
    if len(rows) != values["rows"]:
        raise UserError(
            f"{path} tells of {values['rows']:,} rows, but {values['rows_file']} beside it has {len(rows):,}.",
            "Evaluate again: one of the two files was changed.",
        )
    return Saved(path, values, rows)


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} can't be read: {error.strerror}.", "Check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON: {error}.", "Name a file that `luthier evaluate --out` wrote.") from error
    return value if isinstance(value, dict) else {}


def read_lines(path: Path) -> list[dict[str, Any]]:
    """JSON lines, each an object.

    Raises:
        UserError: the file can't be read, or a line is none; with its number.
    """
    found = []
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} can't be read: {error}.", "Check the path.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(
                f"{path}, line {number} is no JSON: {error}.", "Each line must be one JSON object."
            ) from error
        if not isinstance(value, dict):
            raise UserError(f"{path}, line {number} is {line[:60]!r}, no JSON object.", "Each line must be one.")
        found.append(value)
    return found
