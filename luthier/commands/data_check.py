"""`luthier data check`: what is in the data and what is wrong with it, before anything is trained."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands.data_setup import OpenedData, open_data
from luthier.data.checking.check import check_data
from luthier.data.checking.findings import checked_names, failing
from luthier.data.checking.report import CheckReport
from luthier.data.rejecting import write_rejected
from luthier.foundation.errors import UserError
from luthier.foundation.files import unwritable, write_json, write_text
from luthier.foundation.progress import ProgressBar, progress_bar, say

if TYPE_CHECKING:
    from rich.console import Console

REJECTED = "rejected.jsonl"


@dataclass(frozen=True)
class CheckedData:
    """A check's report.

    Args:
        failed_on: the findings named by --fail-on that were made; the exit status is 3 where there are any.
        notes: what was mended in the tokenizer.
        files: what was written.
    """

    report: CheckReport
    failed_on: tuple[str, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            **self.report.as_dict(),
            "failed_on": list(self.failed_on),
            "notes": list(self.notes),
            "files": list(self.files),
        }


def check(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    fail_on: Sequence[str] = (),
    languages: Sequence[str] = (),
    out: str | Path | None = None,
    trust_remote_code: bool = False,
    console: Console | None = None,
) -> CheckedData:
    """Check a config's data and print what was found. Bad rows never stop it: they are counted.

    Args:
        fail_on: names of findings, see `luthier.data.checking.findings.FINDINGS`, or `any`.
        languages: ISO 639 codes of the languages that rows may be in; empty for any.
        out: a folder for check.json, findings.jsonl (every row of every finding) and rejected.jsonl. Without it only
            rejected rows are written, into the folder `check` of the config's output_dir where that can be.
        console: where to print; standard output by default.

    Raises:
        UserError: the config, tokenizer or a file can't be used; a finding that does not exist, or that can't be
            looked for; `out` can't be written to.
    """
    from rich.console import Console

    names = checked_names(fail_on)
    if "other_language" in names and not languages:
        raise UserError(
            "--fail-on other_language has no languages to go by.", "Name them: --language en --language zh."
        )
    target = Path(out).expanduser() if out is not None else None
    if target is not None and (problem := unwritable(target)):
        raise UserError(f"--out {str(target)!r} can't be used: {problem}.", "Name another folder.")
    opened = open_data(source, overrides, trust_remote_code=trust_remote_code)
    config = opened.config
    report = check_data(
        config.data.model_copy(update={"streaming": False}),  # a check looks at every row
        config.data_seed(),
        opened.tokenizer,
        opened.stage.encoder,
        opened.stage.encoder_options,
        opened.renderer,
        wanted_languages=languages,
        progress=_bar,
    )
    unanswered = [name for name in names if name in report.not_looked_for]
    if unanswered:
        raise UserError(f"--fail-on {unanswered[0]} can't be answered: {report.not_looked_for[unanswered[0]]}")
    files = _write(report, opened, target)
    result = CheckedData(report, failing(report.findings, names), opened.notes, tuple(map(str, files)))
    if target is not None:
        write_json(target / "check.json", result.as_dict())
    _print(result, console or Console(highlight=False))
    return result


@contextmanager
def _bar(description: str, rows: int) -> Iterator[ProgressBar]:
    with progress_bar(description, rows, unit="rows") as bar:
        yield bar


def _write(report: CheckReport, opened: OpenedData, out: Path | None) -> list[Path]:
    """The files of a check; a list of rejected rows from an earlier one goes where none are rejected now."""
    folder = out if out is not None else Path(opened.config.output_dir) / "check"
    if out is None and (problem := unwritable(folder)):  # the report is worth more than that file
        if report.rejected:
            say(f"the rejected rows are not written: {problem}; --out names another folder for them")
        return []
    written = []
    if report.rejected or out is not None:
        write_rejected(folder / REJECTED, report.rejected)
        written.append(folder / REJECTED)
    else:
        (folder / REJECTED).unlink(missing_ok=True)
    if out is not None:
        hits = [hit.as_dict() for found in report.findings.values() for hit in found]
        write_text(out / "findings.jsonl", "".join(json.dumps(hit, ensure_ascii=False) + "\n" for hit in hits))
        written += [out / "findings.jsonl", out / "check.json"]
    return written


def _print(result: CheckedData, console: Console) -> None:
    console.print(result.report.table(), soft_wrap=True)
    for note in result.notes:
        console.print(f"tokenizer: {note}", markup=False, soft_wrap=True)
    for file in result.files:
        console.print(f"written: {file}", markup=False, soft_wrap=True)
    if result.failed_on:
        console.print(f"failed on: {', '.join(result.failed_on)}", style="bold red", markup=False, soft_wrap=True)
