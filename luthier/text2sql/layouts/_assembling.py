"""Questions, a tables.json and a folder of databases put together: what fits, and why the rest does not."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from luthier.data.records import RawRow, Rejected
from luthier.foundation.errors import DataError
from luthier.foundation.registry import nearest
from luthier.text2sql.databases import Database, SqliteDatabase
from luthier.text2sql.layout import Dataset, Question
from luthier.text2sql.schema import Schema, disagreements
from luthier.text2sql.tables_json import read_tables


def databases_in(folder: Path, schemas: Mapping[str, Schema]) -> tuple[dict[str, Database], list[str]]:
    """The SQLite files DB_ID/DB_ID.sqlite of a folder by db_id, and the db_ids that have none."""
    places = {db_id: folder / db_id / f"{db_id}.sqlite" for db_id in schemas}
    found: dict[str, Database] = {
        db_id: SqliteDatabase(db_id, place) for db_id, place in places.items() if os.path.isfile(place)
    }
    return found, [db_id for db_id in schemas if db_id not in found]


def compared(
    schemas: Mapping[str, Schema], databases: Mapping[str, Database], rows: Mapping[str, RawRow], used: set[str]
) -> list[Rejected]:
    """The rows of tables.json that tell of another database than the one that is there."""
    rejected = []
    for db_id in sorted(used & schemas.keys() & databases.keys()):
        try:
            problems = disagreements(schemas[db_id], databases[db_id].schema())
        except DataError as error:
            problems = [error.problem]
        if problems:
            reason = f"db_id {db_id!r} disagrees with its database: {'; '.join(problems)}"
            rejected.append(Rejected(rows[db_id].origin, reason, rows[db_id].values))
    return rejected


def assembled(questions: Sequence[Question], rejected: Sequence[Rejected], tables: Path, folder: Path) -> Dataset:
    """A data set with the schemas of a tables.json and the databases of a folder; what does not fit is rejected.

    Raises:
        UserError: the tables.json is missing. DataError: it is broken.
    """
    schemas, faulty, rows = read_tables(tables)
    databases, without = databases_in(folder, schemas)
    used = {question.db_id for question in questions}
    faulty += compared(schemas, databases, rows, used)
    unusable = {str(item.values.get("db_id")) for item in faulty}
    kept = []
    bad = list(rejected)
    for question in questions:
        problem = _unknown(question.db_id, schemas, unusable, tables)
        if problem is None:
            kept.append(question)
        else:
            values = {"db_id": question.db_id, "question": question.text, "query": question.query}
            bad.append(Rejected(question.origin, problem, values))
    notes = []
    if folder.is_dir() and (lacking := sorted(used & set(without))):
        count = sum(question.db_id in lacking for question in kept)
        notes.append(f"{folder} lacks the databases of {count:,} questions: {', '.join(lacking)}")
    usable = {db_id: schema for db_id, schema in schemas.items() if db_id not in unusable}
    return Dataset(kept, usable, databases, [*faulty, *bad], notes)


def _unknown(db_id: str, schemas: Mapping[str, Schema], unusable: set[str], tables: Path) -> str | None:
    if db_id in unusable:
        return f"the schema of its db_id {db_id!r} can't be used"
    if db_id in schemas:
        return None
    close = nearest(db_id, schemas)
    hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
    return f"the db_id {db_id!r} is not among the {len(schemas):,} of {tables}{hint}"
