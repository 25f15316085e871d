"""Databases by their URL: SQLite, and a PostgreSQL that the test starts where one is installed."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.text2sql.databases import SqliteDatabase
from luthier.text2sql.layout import chosen_layout
from luthier.text2sql.schema import Column, ForeignKey
from tests.text2sql.conftest import make_database, prepare, rows_of, write
from tests.text2sql.test_layouts import WORKSHOP_SQL

PASSWORD = "s3cret-of-nobody"
POSTGRES_SQL = """
CREATE TABLE maker (id integer PRIMARY KEY, name varchar(40), city text);
CREATE TABLE instrument (id integer PRIMARY KEY, kind text, maker_id integer REFERENCES maker, "list price" numeric(9,2));
CREATE TABLE repair (instrument_id integer REFERENCES instrument (id), day date, PRIMARY KEY (instrument_id, day));
COMMENT ON COLUMN instrument.kind IS 'what it is called';
INSERT INTO maker VALUES (1, '李木', '苏州'), (2, 'Anna Brandt', 'Mittenwald');
INSERT INTO instrument VALUES (1, '琵琶', 1, 900);
INSERT INTO repair VALUES (1, '2024-02-29');
"""
PAIRS = [
    {"question": "Which instruments did Anna Brandt make?", "query": "SELECT kind FROM instrument WHERE maker_id = 2"}
]


def test_sqlite_by_url_tells_the_same_as_the_file(tmp_path: Path) -> None:
    path = make_database(tmp_path / "workshop.sqlite", WORKSHOP_SQL)
    found, dataset = chosen_layout("auto", {"path": f"sqlite:///{path}"})
    assert found == "sqlalchemy"
    by_file = SqliteDatabase("workshop", path).schema()
    schema = dataset.schemas["workshop"]
    assert {table.name: table for table in schema.tables} == {table.name: table for table in by_file.tables}
    assert set(schema.foreign_keys) == set(by_file.foreign_keys)
    maker = schema.table("maker")
    assert maker is not None
    assert dataset.databases["workshop"].rows(maker, 1) == [(1, "李木", "苏州")]
    assert dataset.databases["workshop"].values(maker, maker.columns[2], 9) == ["苏州", "Mittenwald"]
    assert dataset.databases["workshop"].values(maker, maker.columns[0], 9) == []


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """A PostgreSQL of this test's own on a socket, without a port; its URL."""
    programs = [shutil.which(name) for name in ("initdb", "pg_ctl", "createdb", "psql")]
    if not all(programs):
        pytest.skip("PostgreSQL's programs initdb, pg_ctl, createdb and psql are not on the PATH")
    initdb, pg_ctl, createdb, psql = map(str, programs)
    user: dict[str, str] = {}
    if os.geteuid() == 0:  # the server refuses to run as root
        try:
            pwd.getpwnam("postgres")
        except KeyError:
            pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
        user = {"user": "postgres"}
    # not in tmp_path, whose folders another user may not enter; a socket's path has to be short
    folder = Path(
        subprocess.run(
            ["mktemp", "-d", "/tmp/pg-XXXXXX"], check=True, capture_output=True, text=True, **user
        ).stdout.strip()
    )
    quiet = {"check": True, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": "/", **user}
    secret = folder / "password"
    options = f"-c listen_addresses='' -c unix_socket_directories={folder} -c fsync=off"
    try:
        subprocess.run(["tee", str(secret)], input=PASSWORD.encode(), **quiet)
        subprocess.run(
            [
                initdb,
                "-D",
                str(folder / "data"),
                "-U",
                "luthier",
                "-A",
                "scram-sha-256",
                f"--pwfile={secret}",
                "-E",
                "UTF8",
                "--locale=C.UTF-8",
                "--no-sync",
            ],
            **quiet,
        )
        subprocess.run(
            [pg_ctl, "-D", str(folder / "data"), "-o", options, "-l", str(folder / "log"), "-w", "start"], **quiet
        )
        try:
            login = {**quiet, "env": {**os.environ, "PGPASSWORD": PASSWORD, "PGHOST": str(folder), "PGUSER": "luthier"}}
            subprocess.run([createdb, "workshop"], **login)
            subprocess.run(
                [psql, "-q", "-d", "workshop", "-v", "ON_ERROR_STOP=1"], input=POSTGRES_SQL.encode(), **login
            )
            yield f"postgresql+psycopg://luthier:{PASSWORD}@/workshop?host={folder}"
        finally:
            subprocess.run([pg_ctl, "-D", str(folder / "data"), "-m", "immediate", "stop"], **quiet)
    finally:
        shutil.rmtree(folder)


def test_postgresql(postgres: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKSHOP_URL", postgres)
    _, dataset = chosen_layout("auto", {"path": "env:WORKSHOP_URL"})
    schema = dataset.schemas["workshop"]
    assert schema.dialect == "PostgreSQL"
    instrument = schema.table("instrument")
    assert instrument is not None
    assert instrument.columns == (
        Column("id", "INTEGER"),
        Column("kind", "TEXT", description="what it is called"),
        Column("maker_id", "INTEGER"),
        Column("list price", "NUMERIC(9, 2)"),
    )
    assert set(schema.foreign_keys) == {
        ForeignKey("instrument", "maker_id", "maker", "id"),
        ForeignKey("repair", "instrument_id", "instrument", "id"),
    }
    pairs = write(tmp_path / "pairs.json", PAIRS)
    out = tmp_path / "o.json"
    told = ["--style", "create_table", "--sample-rows", 1, "--column-values", 2, "--meanings"]
    assert prepare("env:WORKSHOP_URL", "--questions", pairs, *told, "--out", out) == 0
    text = rows_of(out)[0]["instruction"]
    assert text.startswith("Write one PostgreSQL query that answers the question about the database workshop.")
    assert "-- maker.name holds 'Anna Brandt'" in text
    assert "1 | '2024-02-29'" in text and "1 | '琵琶' | 1 | '900.00'" in text
    assert PASSWORD not in text


def test_a_wrong_password_is_not_repeated(postgres: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = postgres.replace(PASSWORD, "wr0ng-one")
    assert prepare(wrong, "--out", tmp_path / "o.json") == 2
    captured = capsys.readouterr()
    assert "postgresql+psycopg://luthier:***@/workshop" in captured.err
    assert "password authentication failed" in captured.err
    assert "wr0ng" not in captured.err + captured.out


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("postgresql+psycopg://u:hidden-word@localhost:x/db", "the database's URL can't be read"),
        ("nosuch://u:hidden-word@localhost/db", "SQLAlchemy knows no database 'nosuch'"),
        (
            "mysql+mysqldb://u:hidden-word@localhost/db",
            "the driver of mysql+mysqldb is not installed: no module 'MySQLdb'",
        ),
        ("postgresql+psycopg://u:hidden-word@/db?host=/nonexistent", "u:***@/db"),
        ("env:NOT_SET_ANYWHERE", "the environment variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_a_url_that_leads_nowhere(url: str, expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(url, "--out", tmp_path / "o.json") == 2
    error = capsys.readouterr().err
    assert expected in error
    assert "hidden-word" not in error


def test_a_url_without_questions_is_not_repeated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = make_database(tmp_path / "workshop.sqlite", WORKSHOP_SQL)
    assert prepare(f"sqlite:///{path}", "--out", tmp_path / "o.json") == 2
    assert "there is no question to make a row of." in capsys.readouterr().err
