"""tables.json: the schemas of Spider, and of BIRD, CoSQL and SParC, which took it over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from luthier.data.reading import iterate_file
from luthier.data.records import RawRow, Rejected
from luthier.foundation.files import need_file
from luthier.text2sql.layout import text_problem
from luthier.text2sql.schema import Column, ForeignKey, Schema, Table

# what tables.json calls a column's type, as SQL
_TYPES = {"number": "NUMERIC", "time": "DATETIME", "others": ""}
_LISTS = ("table_names_original", "column_names_original", "primary_keys", "foreign_keys")


def read_tables(path: Path) -> tuple[dict[str, Schema], list[Rejected], dict[str, RawRow]]:
    """The schemas of a tables.json by db_id, the rows that can't be used, and the row of each schema.

    A row is {db_id, table_names_original, column_names_original: [[table, name], ...], primary_keys: [column, ...],
    foreign_keys: [[column, column], ...]}; columns are numbered from 0, which is `*` and belongs to table -1.

    Raises:
        UserError: the file is missing. DataError: it is no JSON list of objects.
    """
    schemas: dict[str, Schema] = {}
    rows: dict[str, RawRow] = {}
    rejected = []
    for row in iterate_file(need_file(path, "the file of schemas")):
        problem = _problem(row)
        if problem is None and row.values["db_id"] in schemas:
            problem = f"the db_id {row.values['db_id']!r} stands twice in the file (first in row {rows[row.values['db_id']].origin.row})"
        if problem is not None:
            rejected.append(Rejected(row.origin, problem, row.values))
            continue
        schemas[row.values["db_id"]], rows[row.values["db_id"]] = _schema(row.values), row
    return schemas, rejected, rows


def _problem(row: RawRow) -> str | None:
    if problem := text_problem(row, "db_id"):
        return problem
    values, place = row.values, f"db_id {row.values['db_id']!r}"
    for key in _LISTS:
        if not isinstance(values.get(key), list):
            return f"{place}: {key} is {values.get(key)!r}, not a list"
    tables, columns = values["table_names_original"], values["column_names_original"]
    for index, name in enumerate(tables):
        if not isinstance(name, str) or not name.strip():
            return f"{place}: table_names_original[{index}] is {name!r}, not a name"
    for index, column in enumerate(columns):
        if not (isinstance(column, list) and len(column) == 2 and _is(column[0], int) and _is(column[1], str)):
            return f"{place}: column_names_original[{index}] is {column!r}, not [number of its table, name]"
        if not (0 <= column[0] < len(tables) or (index == 0 and column[0] == -1)):
            return f"{place}: column_names_original[{index}] is {column!r}, but the tables are numbered from 0 to {len(tables) - 1}"
    if len(columns) < 2 or columns[0][1] != "*":
        return f"{place}: column_names_original starts with {columns[:1]!r}, not with [-1, '*'] and then the columns"
    return _key_problem(values, place, len(columns))


def _key_problem(values: Mapping[str, Any], place: str, columns: int) -> str | None:
    def known(number: Any) -> bool:
        return _is(number, int) and 1 <= number < columns

    for index, key in enumerate(values["primary_keys"]):
        if not (known(key) or (isinstance(key, list) and key and all(map(known, key)))):
            return f"{place}: primary_keys[{index}] is {key!r}, but the columns are numbered from 1 to {columns - 1}"
    for index, key in enumerate(values["foreign_keys"]):
        if not (isinstance(key, list) and len(key) == 2 and all(map(known, key))):
            return (
                f"{place}: foreign_keys[{index}] is {key!r}, not two of the columns, numbered from 1 to {columns - 1}"
            )
    for key in ("column_types", "column_names"):
        if key in values and (not isinstance(values[key], list) or len(values[key]) != columns):
            return f"{place}: {key} does not have the {columns} entries of column_names_original"
    return None


def _is(value: Any, kind: type) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _schema(values: Mapping[str, Any]) -> Schema:
    names: list[str] = values["table_names_original"]
    columns: list[list[Any]] = values["column_names_original"]
    types = values.get("column_types") or [""] * len(columns)
    titles = [entry[1] for entry in values.get("column_names") or columns]
    keys = [key if isinstance(key, list) else [key] for key in values["primary_keys"]]
    tables = tuple(
        Table(
            name,
            tuple(
                Column(column[1], _type(types[number]), str(titles[number]))
                for number, column in enumerate(columns)
                if column[0] == index
            ),
            tuple(tuple(columns[number][1] for number in key) for key in keys if columns[key[0]][0] == index),
        )
        for index, name in enumerate(names)
    )
    references = tuple(
        ForeignKey(names[columns[one][0]], columns[one][1], names[columns[other][0]], columns[other][1])
        for one, other in values["foreign_keys"]
    )
    return Schema(values["db_id"], tables, references)


def _type(word: Any) -> str:
    return _TYPES.get(str(word).lower(), str(word).upper())
