"""BIRD, WikiSQL, CoSQL, SParC, SQLite and SQLAlchemy: small data sets of each, and what is wrong in them."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luthier.config.plugins import SQL_LAYOUTS
from luthier.data.records import RowError
from luthier.foundation.errors import DataError
from luthier.sandbox.sandbox import Sandbox
from luthier.text2sql.databases import SqliteDatabase
from luthier.text2sql.layout import LayoutOptions, chosen_layout
from luthier.text2sql.layouts.wikisql import query_of
from luthier.text2sql.schema import Column, ForeignKey, Table
from tests.sandbox.conftest import state_of
from tests.text2sql.conftest import DEPARTMENTS, DEPARTMENTS_SQL, QUESTIONS, make_database, prepare, rows_of, write

WORKSHOP_SQL = """
CREATE TABLE maker (id INTEGER PRIMARY KEY, name TEXT, city TEXT);
CREATE TABLE instrument (id INTEGER PRIMARY KEY, kind TEXT, maker_id INTEGER REFERENCES maker, "list price" REAL);
CREATE TABLE repair (instrument_id INTEGER, day TEXT, PRIMARY KEY (instrument_id, day),
    FOREIGN KEY (instrument_id) REFERENCES instrument(id));
INSERT INTO maker VALUES (1, '李木', '苏州'), (2, 'Anna Brandt', 'Mittenwald');
INSERT INTO instrument VALUES (1, '琵琶', 1, 900), (2, 'violin', 2, 5200.5), (3, 'viola', 2, 6100);
"""


@pytest.mark.parametrize("name", SQL_LAYOUTS.names())
def test_every_layout_keeps_the_contract(name: str, tmp_path: Path) -> None:
    layout = SQL_LAYOUTS.load(name)
    assert issubclass(layout.Options, LayoutOptions)
    assert layout.Options(path="x").name == name
    assert layout.recognizes(tmp_path) is None
    assert all(field.description for key, field in layout.Options.model_fields.items() if key != "name")


# --- BIRD


@pytest.fixture
def bird(tmp_path: Path) -> Path:
    folder = tmp_path / "bird"
    write(folder / "dev_tables.json", [DEPARTMENTS])
    write(
        folder / "dev.json",
        [
            {
                "question_id": 0,
                "db_id": "department_management",
                "question": "How many old heads are there?",
                "evidence": "old means age > 60",
                "SQL": "SELECT COUNT(*) FROM head WHERE age > 60",
                "difficulty": "simple",
            }
        ],
    )
    place = folder / "dev_databases/department_management"
    make_database(place / "department_management.sqlite", DEPARTMENTS_SQL)
    told = place / "database_description"
    told.mkdir()
    head = "original_column_name,column_name,column_description,data_format,value_description\n"
    (told / "Head.csv").write_bytes(
        b"\xef\xbb\xbf" + head.encode() + b'born_state,,"where the head\nwas born",text,\nage,,age,integer,in years\n'
    )
    (told / "department.csv").write_bytes(head.encode() + "Creation,,année,text,\n".encode("cp1252"))
    return folder


def test_bird(bird: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    assert prepare(bird, "--split", "dev", "--style", "create_table", "--meanings", "--out", out) == 0
    (row,) = rows_of(out)
    assert row["input"] == "Known: old means age > 60\nQuestion: How many old heads are there?"
    assert row["output"] == "SELECT COUNT(*) FROM head WHERE age > 60"
    assert "  born_state TEXT, -- where the head was born\n" in row["instruction"]
    assert "  age NUMERIC -- age; in years\n" in row["instruction"]
    assert "  Creation TEXT, -- année\n" in row["instruction"]


def test_bird_without_evidence_and_without_meanings(bird: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    assert prepare(bird, "--split", "dev", "--no-evidence", "--out", out) == 0
    (row,) = rows_of(out)
    assert row["input"] == "###Input:\nHow many old heads are there?\n\n###Response:"
    assert "was born" not in row["instruction"]


def test_a_setting_of_another_layout_is_refused(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(spider, "--no-evidence", "--out", tmp_path / "o.json") == 2
    assert "the layout spider has no use for --evidence" in capsys.readouterr().err


# --- SParC and CoSQL

CONVERSATION = {
    "database_id": "department_management",
    "interaction": [
        {"utterance": "How many heads?", "query": "SELECT count(*) FROM head"},
        {"utterance": "Over 60?", "query": "SELECT count(*) FROM head WHERE age > 60"},
        {"utterance": "Who?", "query": "SELECT name FROM head WHERE age > 60"},
    ],
    "final": {"utterance": "Who is over 60?", "query": "SELECT name FROM head WHERE age > 60"},
}


@pytest.mark.parametrize(
    ("layout", "file"), [("sparc", "train.json"), ("cosql", "sql_state_tracking/cosql_train.json")]
)
def test_conversations_fill_the_history(layout: str, file: str, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    write(folder / "tables.json", [DEPARTMENTS])
    write(folder / file, [CONVERSATION])
    found, _ = chosen_layout("auto", {"path": str(folder)})
    assert found == layout
    out = tmp_path / "o.json"
    assert prepare(folder, "--out", out) == 0
    rows = rows_of(out)
    assert [row["output"] for row in rows] == [turn["query"] for turn in CONVERSATION["interaction"]]  # type: ignore[index]
    assert [len(row["history"]) for row in rows] == [0, 1, 2]
    assert rows[2]["history"] == [
        ["###Input:\nHow many heads?\n\n###Response:", "SELECT count(*) FROM head"],
        ["###Input:\nOver 60?\n\n###Response:", "SELECT count(*) FROM head WHERE age > 60"],
    ]


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"interaction": []}, "the field 'interaction' is [], not a list of turns"),
        ({"interaction": [{"utterance": "Hm?"}]}, "interaction[0] has query None, not a text"),
        ({"interaction": ["Hm?"]}, "interaction[0] has utterance None, not a text"),
        ({"database_id": "other"}, "the db_id 'other' is not among the 1 of"),
    ],
)
def test_faulty_conversations(
    change: dict[str, Any], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    write(folder / "tables.json", [DEPARTMENTS])
    write(folder / "train.json", [CONVERSATION, {**CONVERSATION, **change}])
    assert prepare(folder, "--layout", "sparc", "--out", tmp_path / "o.json") == 2
    assert f"train.json, row 2: {expected}" in capsys.readouterr().err


# --- WikiSQL

WIKI_TABLE = {
    "id": "1-1000181-1",
    "header": ["State/territory", "Current slogan", "Price"],
    "types": ["text", "text", "real"],
    "rows": [["South Australia", "No slogan", 3]],
    "page_title": "Number plates",
}


@pytest.fixture
def wikisql(tmp_path: Path) -> Path:
    folder = tmp_path / "wikisql"
    folder.mkdir()
    (folder / "train.tables.jsonl").write_text(json.dumps(WIKI_TABLE) + "\n", encoding="utf-8")
    question = {
        "phase": 1,
        "table_id": "1-1000181-1",
        "question": "How many states say It's fine and cost over 1,000?",
        "sql": {"sel": 0, "agg": 3, "conds": [[1, 0, "It's fine"], [2, 1, "1,000"]]},
    }
    (folder / "train.jsonl").write_text(json.dumps(question) + "\n", encoding="utf-8")
    return folder


def test_wikisql(wikisql: Path, tmp_path: Path) -> None:
    out = tmp_path / "o.json"
    assert prepare(wikisql, "--style", "create_table", "--out", out) == 0
    (row,) = rows_of(out)
    assert row["db_id"] == "1-1000181-1"
    assert row["output"] == "SELECT COUNT(col0) FROM table_1_1000181_1 WHERE col1 = 'it''s fine' AND col2 > 1000"
    assert "CREATE TABLE table_1_1000181_1 (\n  col0 TEXT, -- State/territory\n" in row["instruction"]


def test_wikisql_queries_run_on_its_database(wikisql: Path, tmp_path: Path) -> None:
    make_database(
        wikisql / "train.db",
        "CREATE TABLE table_1_1000181_1 (col0 TEXT, col1 TEXT, col2 REAL);"
        "INSERT INTO table_1_1000181_1 VALUES ('south australia', 'it''s fine', 1001), ('victoria', 'it''s fine', 1000);",
    )
    out = tmp_path / "o.json"
    assert prepare(wikisql, "--sample-rows", 1, "--out", out) == 0
    (row,) = rows_of(out)
    with closing(sqlite3.connect(wikisql / "train.db")) as opened:
        assert opened.execute(row["output"]).fetchall() == [(1,)]
    assert "rows such as ('south australia', 'it''s fine', 1001.0)" in row["instruction"]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ({"sel": 3, "agg": 0, "conds": []}, "sel is 3, but the columns of t are numbered from 0 to 1"),
        ({"sel": 0, "agg": 6, "conds": []}, "agg is 6, not a number from 0 to 5"),
        ({"sel": 0, "agg": 0, "conds": [[0, 3, "x"]]}, "sql.conds[0][1] is 3, not a number from 0 to 2"),
        ({"sel": 0, "agg": 0, "conds": [[0, 0]]}, "sql.conds[0] is [0, 0], not [column, operator, value]"),
        ({"sel": 0, "agg": 0, "conds": [[0, 0, None]]}, "sql.conds[0][2] is None, neither text nor a number"),
        ({"sel": 0, "agg": 0}, "sql.conds is None, not a list"),
        ("SELECT 1", "the field 'sql' is 'SELECT 1', not a mapping"),
    ],
)
def test_faulty_codes_of_wikisql(code: Any, expected: str) -> None:
    with pytest.raises(RowError) as caught:
        query_of(code, Table("t", (Column("col0", "TEXT"), Column("col1", "REAL"))))
    assert expected in str(caught.value)


def test_faulty_tables_of_wikisql(wikisql: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = {**WIKI_TABLE, "types": ["text"]}
    (wikisql / "train.tables.jsonl").write_text(json.dumps(broken) + "\n", encoding="utf-8")
    assert prepare(wikisql, "--out", tmp_path / "o.json") == 2
    error = capsys.readouterr().err
    assert "train.tables.jsonl, row 1: table '1-1000181-1': types is ['text'], not one for each of 3 columns" in error
    assert "train.jsonl, row 1: its table_id '1-1000181-1' is not among the 0 usable tables" in error


# --- any SQLite file


@pytest.fixture
def workshop(tmp_path: Path) -> Path:
    return make_database(tmp_path / "workshop.sqlite", WORKSHOP_SQL)


def test_the_schema_of_an_sqlite_file(workshop: Path) -> None:
    schema = SqliteDatabase("workshop", workshop).schema()
    assert [table.name for table in schema.tables] == ["maker", "instrument", "repair"]
    assert schema.tables[1].columns[3] == Column("list price", "REAL")
    assert [table.primary_keys for table in schema.tables] == [(("id",),), (("id",),), (("instrument_id", "day"),)]
    assert schema.foreign_keys == (
        ForeignKey("instrument", "maker_id", "maker", "id"),  # it names no column: the primary key is meant
        ForeignKey("repair", "instrument_id", "instrument", "id"),
    )


def test_tables_of_every_kind(tmp_path: Path) -> None:
    """Columns that are computed are told; what serves a virtual table is not, nor one that nothing can read."""
    script = """
    CREATE TABLE song (id INTEGER PRIMARY KEY, title TEXT, loud TEXT AS (upper(title)), kept TEXT AS (title || '!') STORED);
    CREATE TABLE code (code TEXT PRIMARY KEY, body BLOB) WITHOUT ROWID;
    CREATE VIEW short AS SELECT title FROM song;
    CREATE TRIGGER counted AFTER INSERT ON song BEGIN SELECT 1; END;
    CREATE VIRTUAL TABLE notes USING fts5(body);
    PRAGMA writable_schema = ON;
    INSERT INTO sqlite_master VALUES ('table', 'place', 'place', 0, 'CREATE VIRTUAL TABLE place USING absent(x)');
    """
    schema = SqliteDatabase("odd", make_database(tmp_path / "odd.sqlite", script)).schema()
    assert {table.name: [column.name for column in table.columns] for table in schema.tables} == {
        "song": ["id", "title", "loud", "kept"],
        "code": ["code", "body"],
        "notes": ["body"],
    }
    with Sandbox() as sandbox:
        told = sandbox.columns(tmp_path / "odd.sqlite")
    assert told.rows == tuple((table.name, column.name) for table in schema.tables for column in table.columns)


def test_what_only_a_write_ahead_log_has_is_told(workshop: Path, tmp_path: Path) -> None:
    """A table, a column and a value that are not in the file yet: the prompt and the sandbox see the same schema."""
    with closing(sqlite3.connect(workshop, isolation_level=None)) as writer:
        writer.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE wood (name TEXT); "
            "INSERT INTO wood VALUES ('spruce'); ALTER TABLE maker ADD COLUMN born INT;"
        )
        before = state_of(tmp_path)
        assert "workshop.sqlite-wal" in before
        database = SqliteDatabase("workshop", workshop)
        tables = {table.name: table for table in database.schema().tables}
        assert [column.name for column in tables["maker"].columns][-1] == "born"
        assert database.rows(tables["wood"], 1) == [("spruce",)]
        assert database.values(tables["wood"], tables["wood"].columns[0], 3) == ["spruce"]
        with Sandbox() as sandbox:
            told = sandbox.columns(workshop).rows
        assert told == tuple((table.name, column.name) for table in tables.values() for column in table.columns)
        assert state_of(tmp_path) == before
        writer.execute("INSERT INTO wood VALUES ('maple')")  # what is added later is told, too
        assert database.rows(tables["wood"], 5) == [("spruce",), ("maple",)]
    assert SqliteDatabase("workshop", workshop).rows(tables["wood"], 5) == [
        ("spruce",),
        ("maple",),
    ]  # merged at its end


def test_a_database_that_is_gone_when_it_is_read_again(workshop: Path) -> None:
    with closing(sqlite3.connect(workshop, isolation_level=None)) as writer:
        writer.executescript("PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE wood (name TEXT);")
        database = SqliteDatabase("workshop", workshop)
        database.schema()
        workshop.unlink()
        with pytest.raises(DataError, match=r"workshop\.sqlite can't be read: .*No such file"):
            database.schema()


def test_an_sqlite_file_with_questions(workshop: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text(
        "question,query\n苏州有几位制琴师？,SELECT count(*) FROM maker WHERE city = '苏州'\n", encoding="utf-8"
    )
    out = tmp_path / "o.json"
    assert prepare(workshop, "--questions", "pairs.csv", "--column-values", 3, "--db-id", "shop", "--out", out) == 0
    (row,) = rows_of(out)
    assert row["db_id"] == "shop"
    assert row["input"] == "###Input:\n苏州有几位制琴师？\n\n###Response:"
    assert row["output"] == "SELECT count(*) FROM maker WHERE city = '苏州'"
    assert "The city of maker has values such as '苏州'." in row["instruction"]


def test_questions_without_queries_are_rows_to_predict(
    workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = write(tmp_path / "pairs.json", [{"question": "How many?"}, {"question": "", "db_id": "other"}])
    out = tmp_path / "o.json"
    assert prepare(workshop, "--questions", pairs, "--out", out) == 2
    error = capsys.readouterr().err
    assert "row 1: has no query to learn (rows to predict are made with --without-queries)" in error
    assert "row 2: its db_id is 'other', and the database is 'workshop'" in error
    write(pairs, [{"question": "How many?"}])
    assert prepare(workshop, "--questions", pairs, "--without-queries", "--out", out) == 0
    assert rows_of(out)[0]["output"] == ""


def test_an_sqlite_file_alone_has_no_rows(workshop: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(workshop, "--out", tmp_path / "o.json") == 2
    assert "`luthier sql predict --question` asks without a file" in capsys.readouterr().err


def test_an_empty_database(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_database(tmp_path / "empty.sqlite", "PRAGMA user_version = 1;")
    assert prepare(tmp_path / "empty.sqlite", "--out", tmp_path / "o.json") == 2
    assert "has no tables" in capsys.readouterr().err


def test_a_database_with_a_name_that_looks_like_sql(tmp_path: Path) -> None:
    path = make_database(
        tmp_path / "odd.sqlite", 'CREATE TABLE "a"";DROP" ("x "" y" TEXT); INSERT INTO "a"";DROP" VALUES (\'v\')'
    )
    database = SqliteDatabase("odd", path)
    (table,) = database.schema().tables
    assert (table.name, table.columns[0].name) == ('a";DROP', 'x " y')
    assert database.rows(table, 5) == [("v",)]
    assert database.values(table, table.columns[0], 5) == ["v"]


def test_spider_questions_on_its_sqlite_file_alone(spider: Path, tmp_path: Path) -> None:
    """The schema that SQLite tells is the one in tables.json."""
    out = tmp_path / "o.json"
    database = spider / "database/department_management/department_management.sqlite"
    assert prepare(spider, "--out", out) == 0
    expected = rows_of(out)
    assert prepare(database, "--questions", spider / "train_spider.json", "--out", out) == 0
    assert len(expected) == len(QUESTIONS)
    assert [sorted(row["instruction"].split("\n")) for row in rows_of(out)] == [
        sorted(row["instruction"].split("\n")) for row in expected
    ]
