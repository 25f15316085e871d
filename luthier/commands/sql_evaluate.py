"""`luthier sql evaluate`: how many predicted queries are right, and what is wrong with the others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.foundation.errors import UserError
from luthier.foundation.files import need_apart, need_file, need_place, write_json, write_text
from luthier.foundation.progress import progress_bar
from luthier.text2sql.evaluation.evaluating import Item
from luthier.text2sql.evaluation.evaluating import evaluate as judge_all
from luthier.text2sql.evaluation.files import read_pairs
from luthier.text2sql.evaluation.judging import Benchmark
from luthier.text2sql.evaluation.page import queries_page
from luthier.text2sql.evaluation.summary import print_summary, summarize
from luthier.text2sql.schema import Schema
from luthier.text2sql.tables_json import read_tables

if TYPE_CHECKING:
    from rich.console import Console

# BIRD's script allows so many; Spider's has no limit, and its slowest gold query takes a fraction of a second
SECONDS: Mapping[Benchmark, float] = {"spider": 10.0, "bird": 30.0}
RUNS = 10


@dataclass(frozen=True)
class EvaluatedQueries:
    """What was measured.

    Args:
        notes: what a person should know about the files.
        files: what was written.
    """

    summary: Mapping[str, Any]
    items: tuple[Item, ...]
    notes: tuple[str, ...]
    files: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"summary": dict(self.summary), "notes": list(self.notes), "files": list(self.files)}


def evaluate(
    gold: str | Path,
    predicted: str | Path,
    database: str | Path,
    tables: str | Path | None = None,
    *,
    out: str | Path | None = None,
    html: str | Path | None = None,
    benchmark: Benchmark = "spider",
    jobs: int = 2,
    timeout: float | None = None,
    runs: int | None = None,
    console: Console | None = None,
) -> EvaluatedQueries:
    """Judge a file of predictions.

    Args:
        database: folder of the databases, as db_id/db_id.sqlite.
        tables: tables.json; Spider's benchmark needs it for its foreign keys.
        out: file for `{"summary", "items"}`.
        html: file for a page with each wrong query.
        jobs: queries that run at the same time.
        timeout: seconds that one query may take; None: as `SECONDS` says.
        runs: how often BIRD's right queries are timed; None: `RUNS` times.

    Raises:
        UserError: a file is missing or of no use as a whole; a single item that is of no use scores 0 and has its reason.
    """
    gold, predicted, folder = (Path(path).expanduser() for path in (gold, predicted, database))
    tables, out, html = (Path(path).expanduser() if path is not None else None for path in (tables, out, html))
    _check_places(folder, {"--out": out, "--html": html}, [gold, predicted, *([tables] if tables else [])])
    _check_limits(benchmark, timeout, runs)
    stated, faults = _schemas(tables, benchmark, console)
    pairs = read_pairs(gold, predicted)
    for note in pairs.notes:
        _say(console, note)
    with progress_bar("queries", len(pairs.gold)) as bar:
        items = judge_all(
            pairs,
            folder,
            stated=stated,
            faults=faults,
            benchmark=benchmark,
            jobs=jobs,
            seconds=timeout or SECONDS[benchmark],
            runs=0 if benchmark != "bird" else RUNS if runs is None else runs,
            advance=bar.advance,
        )
    summary = summarize(items, benchmark, pairs.conversations)
    files = [str(path) for path in (out, html) if path is not None]
    if out is not None:
        write_json(out, {"summary": summary, "items": [item.as_dict() for item in items]})
    if html is not None:
        page = queries_page(summary, items, gold=gold, predicted=predicted, notes=pairs.notes)
        write_text(html, page)
    if console is not None:
        print_summary(summary, console)
    for file in files:
        _say(console, f"written: {file}")
    return EvaluatedQueries(summary, tuple(items), pairs.notes, tuple(files))


def known_benchmark(name: str) -> Benchmark:
    """The benchmark of this name.

    Raises:
        UserError: there is none.
    """
    known: dict[str, Benchmark] = {"spider": "spider", "bird": "bird"}
    if name not in known:
        raise UserError(f"--benchmark {name!r} is not known.", "It is spider or bird.")
    return known[name]


def _check_places(folder: Path, written: Mapping[str, str | Path | None], read: Sequence[str | Path]) -> None:
    """Raise UserError where there is no folder of databases, or a file can't be written or is one that is read."""
    if not folder.is_dir():
        raise UserError(f"--database {str(folder)!r} is no folder.", "It holds the databases as DB_ID/DB_ID.sqlite.")
    for option, place in written.items():
        if place is not None:
            need_apart(need_place(Path(place), option), option, read)


def _check_limits(benchmark: Benchmark, timeout: float | None, runs: int | None) -> None:
    """Raise UserError for a time that is none, or for runs that nothing is timed in."""
    if timeout is not None and not 0 < timeout < math.inf:
        raise UserError(f"--timeout is {timeout:g} seconds.", "Such as --timeout 10.")
    if runs is not None and benchmark != "bird":
        raise UserError(
            "--runs would have no effect without --benchmark bird, whose queries are timed.", "Leave it out."
        )


def _schemas(
    tables: str | Path | None, benchmark: Benchmark, console: Console | None
) -> tuple[Mapping[str, Schema], Mapping[str, str]]:
    """The schemas of tables.json, and what is wrong with others of it."""
    if benchmark == "bird":
        if tables is not None:
            _say(console, f"{tables} is not looked at: --benchmark bird compares results alone")
        return {}, {}
    if tables is None:
        raise UserError(
            "--tables is missing: Spider's exact match needs the foreign keys of tables.json.",
            "Such as --tables spider/tables.json; --benchmark bird needs none.",
        )
    schemas, rejected, _ = read_tables(need_file(Path(tables), "--tables"))
    if not schemas:
        first = f": {rejected[0].origin}: {rejected[0].reason}" if rejected else ""
        _say(console, f"{tables} holds no schema that can be used, so nothing can be right{first}")
    return schemas, {str(item.values.get("db_id")): f"tables.json can't be used: {item.reason}" for item in rejected}


def _say(console: Console | None, text: str) -> None:
    if console is not None:
        console.print(text, markup=False, soft_wrap=True)
