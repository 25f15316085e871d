"""WikiSQL: questions with coded queries in SPLIT.jsonl, tables in SPLIT.tables.jsonl, all of them in SPLIT.db.

A code {sel, agg, conds: [[column, operator, value], ...]} becomes the SQL that WikiSQL's own evaluation runs: the database
calls the table `1-1000181-1` table_1_1000181_1 and its columns col0, col1, ...; the headers are told as their meanings.

Zhong et al. 2017, "Seq2SQL: Generating Structured Queries from Natural Language using Reinforcement Learning".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from luthier.data.reading import iterate_file
from luthier.data.records import RawRow, Rejected, RowError
from luthier.foundation.files import need_file
from luthier.text2sql.databases import Database, SqliteDatabase
from luthier.text2sql.layout import Dataset, Question
from luthier.text2sql.layouts._places import need_folder, placed, question_files
from luthier.text2sql.layouts._questions import needed, read_questions
from luthier.text2sql.layouts._spider_files import SplitOptions
from luthier.text2sql.schema import Column, Schema, Table

AGGREGATES = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<")
TYPES = {"text": "TEXT", "real": "REAL"}


class Options(SplitOptions):
    """Where the parts of the data set are."""

    name: Literal["wikisql"] = "wikisql"


def recognizes(path: Path) -> str | None:
    """Why a folder looks like WikiSQL, or None."""
    return next((file.name for file in sorted(path.glob("*.tables.jsonl"))), None)


def build(options: Options) -> Dataset:
    """Read the data set; every table is a schema of its own.

    Raises:
        UserError: a file is missing. DataError: a file is broken.
    """
    folder = need_folder(options.path)
    files = question_files(folder, options.questions, (f"{options.split}.jsonl",), options.split)
    schemas, faulty = _tables(placed(folder, options.tables or f"{options.split}.tables.jsonl"))
    questions, rejected = read_questions(files, _converter(schemas))
    database = placed(folder, options.database or f"{options.split}.db")
    databases: dict[str, Database] = {}
    if database.is_file():
        databases = {db_id: SqliteDatabase(db_id, database) for db_id in schemas}
    return Dataset(questions, schemas, databases, [*faulty, *rejected], opaque_names=True)


def table_name(identifier: str) -> str:
    """What WikiSQL's database calls a table."""
    return "table_" + identifier.replace("-", "_")


def _tables(path: Path) -> tuple[dict[str, Schema], list[Rejected]]:
    schemas, rejected = {}, []
    for row in iterate_file(need_file(path, "the file of tables")):
        try:
            identifier = needed(row, "id")
            header, types = row.values.get("header"), row.values.get("types")
            if not isinstance(header, list) or not header:
                raise RowError(f"table {identifier!r}: header is {header!r}, not a list of names")
            if not isinstance(types, list) or len(types) != len(header):
                raise RowError(f"table {identifier!r}: types is {types!r}, not one for each of {len(header)} columns")
        except RowError as error:
            rejected.append(Rejected(row.origin, str(error), row.values))
            continue
        columns = tuple(
            Column(f"col{number}", TYPES.get(str(kind), str(kind).upper()), str(title))
            for number, (title, kind) in enumerate(zip(header, types, strict=True))
        )
        title = str(row.values.get("page_title") or row.values.get("caption") or "")
        schemas[identifier] = Schema(identifier, (Table(table_name(identifier), columns, title=title),))
    return schemas, rejected


def _converter(schemas: Mapping[str, Schema]) -> Callable[[RawRow], Iterator[Question]]:
    def convert(row: RawRow) -> Iterator[Question]:
        identifier = needed(row, "table_id")
        schema = schemas.get(identifier)
        if schema is None:
            raise RowError(f"its table_id {identifier!r} is not among the {len(schemas):,} usable tables")
        code = row.values.get("sql")
        query = None if code is None else query_of(code, schema.tables[0])
        yield Question(identifier, needed(row, "question"), query, row.origin)

    return convert


def query_of(code: Any, table: Table) -> str:
    """A coded query as SQL.

    Raises:
        RowError: it is no code of a query to this table.
    """
    if not isinstance(code, Mapping):
        raise RowError(f"the field 'sql' is {code!r}, not a mapping with sel, agg and conds")
    selected = _column(code.get("sel"), "sel", table)
    aggregate = _chosen(code.get("agg"), "agg", AGGREGATES)
    conditions = code.get("conds")
    if not isinstance(conditions, list):
        raise RowError(f"sql.conds is {conditions!r}, not a list")
    query = f"SELECT {f'{aggregate}({selected.name})' if aggregate else selected.name} FROM {table.name}"  # noqa: S608
    tests = [_condition(condition, f"sql.conds[{number}]", table) for number, condition in enumerate(conditions)]
    return query + (f" WHERE {' AND '.join(tests)}" if tests else "")


def _condition(condition: Any, place: str, table: Table) -> str:
    if not isinstance(condition, list) or len(condition) != 3:
        raise RowError(f"{place} is {condition!r}, not [column, operator, value]")
    column = _column(condition[0], f"{place}[0]", table)
    operator = _chosen(condition[1], f"{place}[1]", OPERATORS)
    value = condition[2]
    if column.type == "REAL" and isinstance(value, str):
        value = _number(value)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"{column.name} {operator} {value}"
    if not isinstance(value, str):
        raise RowError(f"{place}[2] is {value!r}, neither text nor a number")
    # the texts of WikiSQL's database are in small letters, and its evaluation compares with those
    return f"{column.name} {operator} '{value.lower().replace(chr(39), chr(39) * 2)}'"


def _number(value: str) -> str | float | int:
    try:
        number = float(value.replace(",", ""))
    except ValueError:
        return value
    return int(number) if number.is_integer() else number


def _column(number: Any, place: str, table: Table) -> Column:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(table.columns):
        raise RowError(
            f"{place} is {number!r}, but the columns of {table.name} are numbered from 0 to {len(table.columns) - 1}"
        )
    return table.columns[number]


def _chosen(number: Any, place: str, known: tuple[str, ...]) -> str:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < len(known):
        raise RowError(f"{place} is {number!r}, not a number from 0 to {len(known) - 1}")
    return known[number]
