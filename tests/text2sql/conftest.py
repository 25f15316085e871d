"""A small data set in Spider's layout, written for a test."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luthier import cli

DEPARTMENTS: dict[str, Any] = {
    "db_id": "department_management",
    "table_names_original": ["department", "head", "management"],
    "table_names": ["department", "head", "management"],
    "column_names_original": [
        [-1, "*"],
        [0, "Department_ID"],
        [0, "Name"],
        [0, "Creation"],
        [0, "Ranking"],
        [0, "Budget_in_Billions"],
        [0, "Num_Employees"],
        [1, "head_ID"],
        [1, "name"],
        [1, "born_state"],
        [1, "age"],
        [2, "department_ID"],
        [2, "head_ID"],
        [2, "temporary_acting"],
    ],
    "column_types": ["text", "number", *["text"] * 2, *["number"] * 4, *["text"] * 2, *["number"] * 3, "text"],
    "primary_keys": [1, 7, 11],
    "foreign_keys": [[12, 7], [11, 1]],
}
DEPARTMENTS_SQL = """
CREATE TABLE department (Department_ID int PRIMARY KEY, Name text, Creation text, Ranking int, Budget_in_Billions real,
    Num_Employees real);
CREATE TABLE head (head_ID int PRIMARY KEY, name text, born_state text, age real);
CREATE TABLE management (department_ID int PRIMARY KEY, head_ID int, temporary_acting text,
    FOREIGN KEY (department_ID) REFERENCES department(Department_ID), FOREIGN KEY (head_ID) REFERENCES head(head_ID));
INSERT INTO department VALUES (1, 'State', '1789', 1, 9.96, 30266), (2, 'Treasury', '1789', 2, 11.1, 115897);
INSERT INTO head VALUES (1, 'Tiger Woods', 'Alabama', 67), (2, 'Sergio García', 'California', 68);
INSERT INTO management VALUES (2, 2, 'Yes');
"""
QUESTIONS = [
    {
        "db_id": "department_management",
        "question": "How many heads of the departments are older than 56 ?",
        "query": "SELECT count(*) FROM head WHERE age  >  56",
    },
    {
        "db_id": "department_management",
        "question": "Which heads were born in Alabama?",
        "query": "SELECT name FROM head WHERE born_state = 'Alabama'",
    },
]


def make_database(path: Path, script: str) -> Path:
    """An SQLite file as a script makes it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path)) as opened:
        opened.executescript(script)
    return path


def write(path: Path, value: Any) -> Path:
    """A JSON file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def prepare(*arguments: object) -> int:
    """`luthier sql prepare`."""
    return cli.main(["sql", "prepare", *map(str, arguments)])


def rows_of(path: Path) -> list[dict[str, Any]]:
    """The rows that were written."""
    rows: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return rows


def write_spider(folder: Path, questions: Sequence[dict[str, Any]] = QUESTIONS, **changes: Any) -> Path:
    """A folder in Spider's layout; `changes` are made to its only schema."""
    write(folder / "tables.json", [{**DEPARTMENTS, **changes}])
    write(folder / "train_spider.json", questions)
    make_database(folder / "database/department_management/department_management.sqlite", DEPARTMENTS_SQL)
    return folder


@pytest.fixture
def spider(tmp_path: Path) -> Path:
    """A folder in Spider's layout."""
    return write_spider(tmp_path / "spider")


@pytest.fixture(scope="session")
def real_spider() -> Path:
    """The real Spider, where it lies beside the project."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "data" / "text2sql"
    if not folder.is_dir():
        pytest.skip("no ../shared/data beside the project: real data sets are not part of it")
    return folder
