"""BIRD: questions with evidence, schemas in SPLIT_tables.json, databases in SPLIT_databases/DB_ID/, with a description
of every column in database_description/TABLE.csv.

Li et al. 2023, "Can LLM Already Serve as A Database Interface? A BIg Bench for Large-Scale Database Grounded
Text-to-SQLs".
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Literal

from pydantic import Field

from luthier.text2sql.layout import Dataset
from luthier.text2sql.layouts._questions import single_turn
from luthier.text2sql.layouts._spider_files import SplitOptions, database_folder, read_split
from luthier.text2sql.schema import Schema, Table

DESCRIPTIONS = "database_description"


class Options(SplitOptions):
    """Where the parts of the data set are."""

    name: Literal["bird"] = "bird"
    evidence: bool = Field(True, description="Tell the evidence with the question.")


def recognizes(path: Path) -> str | None:
    """Why a folder looks like BIRD, or None."""
    found = [name for name in ("train_tables.json", "dev_tables.json") if (path / name).is_file()]
    return found[0] if found else None


def build(options: Options) -> Dataset:
    """Read the data set.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    evidence = "evidence" if options.evidence else ""
    folder = f"{options.split}_databases"
    found = read_split(
        options,
        (f"{options.split}.json",),
        single_turn("db_id", "question", "SQL", evidence),
        tables=f"{options.split}_tables.json",
        database=folder,
    )
    databases = database_folder(options, folder)
    notes = list(found.notes)
    schemas = {db_id: _described(schema, databases / db_id, notes) for db_id, schema in found.schemas.items()}
    return replace(found, schemas=schemas, notes=notes)


def _described(schema: Schema, folder: Path, notes: list[str]) -> Schema:
    """A schema with the descriptions of its columns, where the folder of its database has some."""
    files = {path.stem.casefold(): path for path in (folder / DESCRIPTIONS).glob("*.csv")}
    tables = []
    for table in schema.tables:
        path = files.get(table.name.casefold())
        tables.append(table if path is None else _described_table(table, path, notes))
    return replace(schema, tables=tuple(tables))


def _described_table(table: Table, path: Path, notes: list[str]) -> Table:
    told = _descriptions(path)
    if told is None:
        notes.append(f"{path} has no column original_column_name, so it tells nothing")
        return table
    return replace(
        table,
        columns=tuple(
            replace(column, description=told.get(column.name.casefold(), column.description))
            for column in table.columns
        ),
    )


def _descriptions(path: Path) -> Mapping[str, str] | None:
    """By column: its description and what its values mean; None where the file has no such columns.

    Some of BIRD's files are not UTF-8.
    """
    stored = path.read_bytes()
    try:
        text = stored.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = stored.decode("cp1252", errors="replace")
    rows = csv.DictReader(io.StringIO(text))
    if "original_column_name" not in (rows.fieldnames or ()):
        return None
    told = {}
    for row in rows:
        parts = [(row.get(key) or "").strip() for key in ("column_description", "value_description")]
        if any(parts):
            told[(row["original_column_name"] or "").strip().casefold()] = "; ".join(filter(None, parts))
    return told
