"""One prediction's verdict beside its gold query: exact set match, execution, hardness, and the reason where it is wrong."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from luthier.sandbox.sandbox import Outcome, Row, Sandbox
from luthier.text2sql.evaluation.efficiency import time_ratio
from luthier.text2sql.evaluation.exact_match import ExactMatch, PartMatch, compare
from luthier.text2sql.evaluation.execution import (
    holds_statement,
    orders,
    runnable,
    same_result,
    same_set,
    several_statements,
    with_placeholders_filled,
)
from luthier.text2sql.evaluation.files import GoldQuery, Prediction
from luthier.text2sql.evaluation.hardness import hardness
from luthier.text2sql.evaluation.parsing import parse
from luthier.text2sql.evaluation.query import Query
from luthier.text2sql.evaluation.schemas import Tables, named_tables, same_columns, schema_of
from luthier.text2sql.evaluation.tokens import UnreadableError
from luthier.text2sql.schema import Schema, disagreements

Benchmark = Literal["spider", "bird"]
UNKNOWN = "unknown"
SHOWN_ROWS = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one item.

    Args:
        hardness: of the gold query, or what the gold file says of it; `unknown` where neither tells.
        exact: None where the benchmark has no such measure.
        parts: how the parts of the queries compare; empty where they were not compared.
        reason: why it is wrong; empty where it is right in every way.
        gold_result, result: what the queries gave, the first rows of it; None where they were not run.
        time_ratio: how many times as long the gold query takes; 0 where the prediction is wrong, None where nothing was timed.
    """

    hardness: str
    exact: int | None
    execution: int
    reason: str
    parts: Mapping[str, PartMatch] = field(default_factory=dict)
    gold_result: Outcome | None = None
    result: Outcome | None = None
    time_ratio: float | None = None


@dataclass(frozen=True, slots=True)
class Target:
    """A database that gold queries are for.

    Args:
        files: its SQLite files; the prediction has to be right on each. The first is the one in db_id/db_id.sqlite.
        tables: what queries are parsed with; None where neither the database nor tables.json gives them.
        same: foreign keys.
        problem: why every item of it scores 0; empty where nothing is wrong.
    """

    files: Sequence[Path]
    tables: Tables | None
    same: Mapping[str, str]
    problem: str = ""


def find_target(
    folder: Path, db_id: str, stated: Schema | None, fault: str, sandbox: Sandbox, benchmark: Benchmark
) -> Target:
    """The database of a name, and what is wrong with it.

    Args:
        stated: its schema in tables.json; None where there is none that can be used.
        fault: then why; empty where none is needed.
    """
    same = same_columns(stated) if stated else {}
    tables = named_tables(stated) if stated else None
    if db_id in ("", ".", "..") or "/" in db_id or "\0" in db_id:
        return Target((), tables, same, f"{db_id!r} is no name of a database")
    path = folder / db_id / f"{db_id}.sqlite"
    if not os.path.isfile(path):  # the method of a path raises where a name is longer than the system's longest
        return Target((), tables, same, f"there is no database {path}")
    found = sandbox.columns(path)
    if not found.ok:
        return Target((path,), tables, same, f"the database {path} can't be read: {found.error}")
    there = schema_of(db_id, ((str(table), str(column)) for table, column in found.rows))
    if benchmark == "bird":
        return Target((path,), None, {})
    if not fault and stated and (different := disagreements(stated, there)):
        fault = f"tables.json disagrees with the database: {'; '.join(different[:3])}"
    return Target(_all_files(path), named_tables(there), same, fault)


def _all_files(path: Path) -> tuple[Path, ...]:
    """A test suite keeps several databases of one schema in a folder."""
    ending = ("-wal", "-shm", "-journal")
    others = [other for other in path.parent.iterdir() if ".sqlite" in other.name and not other.name.endswith(ending)]
    return (path, *sorted(other for other in others if other != path and other.is_file()))


@dataclass(frozen=True, slots=True)
class Judge:
    """Judges predictions of one benchmark.

    Args:
        runs: how often a right query and its gold query are timed; 0 for never (BIRD).
    """

    benchmark: Benchmark
    sandbox: Sandbox
    runs: int = 0

    def judge(self, gold: GoldQuery, target: Target, predictions: Sequence[Prediction]) -> list[Verdict]:
        """Verdicts on several predictions for one gold query, which is parsed and run once."""
        level, parsed, fault = self._level(gold, target)
        if target.problem:
            reasons = [prediction.problem or target.problem for prediction in predictions]
            parts = compare(Query(), parsed, target.same).parts if parsed else {}
            return [Verdict(level, None if self.benchmark == "bird" else 0, 0, reason, parts) for reason in reasons]
        text = runnable(gold.query) if self.benchmark == "spider" else gold.query
        wanted = [self.sandbox.run(path, text) for path in target.files]
        return [self._one(prediction, target, level, parsed, fault, text, wanted) for prediction in predictions]

    def _level(self, gold: GoldQuery, target: Target) -> tuple[str, Query | None, str]:
        """Hardness, the parsed gold query, and why it is not parsed."""
        if self.benchmark == "bird":
            return gold.difficulty or UNKNOWN, None, ""
        if target.tables is None:
            return UNKNOWN, None, "without tables nothing can be parsed"
        try:
            parsed = parse(gold.query, target.tables)
            return hardness(parsed), parsed, ""
        except (UnreadableError, TypeError) as error:
            return UNKNOWN, None, f"the gold query can't be parsed: {error}"

    def _one(
        self,
        prediction: Prediction,
        target: Target,
        level: str,
        parsed: Query | None,
        fault: str,
        gold_text: str,
        wanted: Sequence[Outcome],
    ) -> Verdict:
        if self.benchmark == "bird":
            return self._bird(prediction, target, level, gold_text, wanted[0])
        query = with_placeholders_filled(prediction.query, target.tables or {})
        problem = prediction.problem or ("several statements" if several_statements(query) else "")
        match, unread = None, problem or fault
        if parsed is not None and target.tables is not None:
            match, unread = self._exact(query, problem, parsed, target)
        if problem:
            return Verdict(level, 0, 0, problem, match.parts if match else {}, _shown(wanted[0]))
        text, ordered = runnable(query), orders(gold_text)
        result, gold_result, fault = Outcome(), wanted[0], ""
        for path, gold_result in zip(target.files, wanted, strict=True):
            result = self._result(path, text, max(len(gold_result.rows) + 1, SHOWN_ROWS))
            fault = _difference(gold_result, result, ordered)
            if fault:
                break
        exact = int(match is not None and match.exact and not unread)
        return Verdict(
            hardness=level,
            exact=exact,
            execution=int(not fault),
            reason=fault or unread or ("" if exact or match is None else _parts(match)),
            parts=match.parts if match else {},
            gold_result=_shown(gold_result),
            result=_shown(result),
        )

    def _exact(self, query: str, problem: str, gold: Query, target: Target) -> tuple[ExactMatch | None, str]:
        """How the queries compare, and what was not understood of the prediction."""
        assert target.tables is not None
        try:
            predicted, unread = (Query() if problem else parse(query, target.tables)), problem
        except UnreadableError as error:
            predicted, unread = Query(), f"not in Spider's subset of SQL: {error}"
        try:
            return compare(predicted, gold, target.same), unread
        except (TypeError, RecursionError) as error:
            return compare(Query(), gold, target.same), f"not in Spider's subset of SQL: {error}"

    def _result(self, path: Path, query: str, first_rows: int | None = None) -> Outcome:
        """What comes of a prediction; of one without a statement no row, as the scripts have it, and no fault."""
        if not holds_statement(query):
            return Outcome()
        return self.sandbox.run(path, query, first_rows=first_rows)

    def _bird(self, prediction: Prediction, target: Target, level: str, gold_text: str, wanted: Outcome) -> Verdict:
        if prediction.problem:
            return Verdict(level, None, 0, prediction.problem, {}, _shown(wanted), None, 0.0 if self.runs else None)
        result = self._result(target.files[0], prediction.query)
        fault = _failure(wanted, result)
        if not fault and not same_set(wanted.rows, result.rows):
            fault = _counts(wanted, result) or "the rows differ"
        ratio = None
        if self.runs:
            ratio = 0.0 if fault else time_ratio(self.sandbox, target.files[0], gold_text, prediction.query, self.runs)
        return Verdict(level, None, int(not fault), fault, {}, _shown(wanted), _shown(result), ratio)


def _shown(outcome: Outcome) -> Outcome:
    """Its first rows; `cut` tells that there are more."""
    rows: tuple[Row, ...] = outcome.rows[:SHOWN_ROWS]
    return Outcome(
        outcome.columns,
        rows,
        outcome.seconds,
        outcome.cut or len(rows) < len(outcome.rows),
        outcome.kind,
        outcome.error,
    )


def _failure(gold: Outcome, result: Outcome) -> str:
    if not gold.ok:
        return f"the gold query can't be run: {gold.error}"
    if result.ok:
        return ""
    return f"SQLite can't run it: {result.error}" if result.kind == "sql" else result.error


def _difference(gold: Outcome, result: Outcome, ordered: bool) -> str:
    """Why a prediction's result is not the gold query's; empty where it is."""
    if fault := _failure(gold, result):
        return fault
    if not result.cut and same_result(gold.rows, result.rows, ordered):
        return ""
    if fault := _counts(gold, result):
        return fault
    same_but_order = ordered and same_result(gold.rows, result.rows, False)
    return "the rows are in another order" if same_but_order else "the rows differ"


def _counts(gold: Outcome, result: Outcome) -> str:
    if len(gold.columns) != len(result.columns):
        return f"{_counted(len(result.columns), 'column')} in place of {len(gold.columns):,}"
    if result.cut or len(gold.rows) != len(result.rows):
        more = "more than " if result.cut else ""
        return f"{more}{_counted(len(result.rows) - result.cut, 'row')} in place of {len(gold.rows):,}"
    return ""


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _parts(match: ExactMatch) -> str:
    """Where the queries differ."""
    different = [name for name, part in match.parts.items() if not part.matched]
    return f"other than the gold query in {', '.join(different) or 'the tables of FROM'}"
