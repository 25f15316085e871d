"""Spider's layout and DB-GPT-Hub's sentences: the exact strings, every fault told, the real data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from luthier.config.data_section import DataEntry
from luthier.data.detection import choose_format
from luthier.data.reading import iterate_file
from luthier.data.records import Conversation
from tests.text2sql.conftest import DEPARTMENTS, QUESTIONS, prepare, rows_of, write, write_spider

DEPARTMENTS_INSTRUCTION = (
    "I want you to act as a SQL terminal in front of an example database, you need only to return the sql command to "
    "me.Below is an instruction that describes a task, Write a response that appropriately completes the request.\n"
    '"\n'
    "##Instruction:\n"
    "department_management contains tables such as department, head, management. "
    "Table department has columns such as Department_ID, Name, Creation, Ranking, Budget_in_Billions, Num_Employees. "
    "Department_ID is the primary key.\n"
    "Table head has columns such as head_ID, name, born_state, age. head_ID is the primary key.\n"
    "Table management has columns such as department_ID, head_ID, temporary_acting. department_ID is the primary key.\n"
    "The head_ID of management is the foreign key of head_ID of head.\n"
    "The department_ID of management is the foreign key of Department_ID of department.\n"
    "\n"
)
ROW = {
    "db_id": "department_management",
    "instruction": DEPARTMENTS_INSTRUCTION,
    "input": "###Input:\nHow many heads of the departments are older than 56 ?\n\n###Response:",
    "output": "SELECT count(*) FROM head WHERE age  >  56",
    "history": [],
}


def test_rows_are_dbgpthubs_word_for_word(spider: Path, tmp_path: Path) -> None:
    out = tmp_path / "train.json"
    assert prepare(spider, "--out", out) == 0
    rows = rows_of(out)
    assert rows[0] == ROW
    assert [row["output"] for row in rows] == [question["query"] for question in QUESTIONS]


def test_rows_are_read_as_text_to_sql(spider: Path, tmp_path: Path) -> None:
    out = tmp_path / "train.jsonl"
    assert prepare(spider, "--out", out) == 0
    rows = list(iterate_file(out))
    chosen = choose_format(DataEntry(path=str(out)), rows, Conversation)
    assert chosen.name == "text_to_sql"
    conversation = chosen.convert(rows[0])
    assert isinstance(conversation, Conversation)
    asked, answered = conversation.messages
    assert asked.content == f"{ROW['instruction']}\n{ROW['input']}"
    assert answered.content == ROW["output"]


def test_a_composite_primary_key_is_one_sentence(tmp_path: Path) -> None:
    folder = write_spider(tmp_path / "set", primary_keys=[1, 7, [11, 12]])
    assert prepare(folder, "--out", tmp_path / "o.json") == 0
    assert (
        "temporary_acting. The combination of (department_ID, head_ID) are the primary key.\nThe head_ID"
        in (rows_of(tmp_path / "o.json")[0]["instruction"])
    )


def sentences_by_position(entry: dict[str, Any]) -> str:
    """DB-GPT-Hub's text, from the numbers in tables.json alone."""
    tables, columns = entry["table_names_original"], entry["column_names_original"]
    text = f"{entry['db_id']} contains tables such as {', '.join(tables)}. "
    for number, table in enumerate(tables):
        own = [name for place, name in columns if place == number]
        text += f"Table {table} has columns such as {', '.join(own)}. "
        text += "".join(
            f"{columns[k][1]} is the primary key.\n" for k in entry["primary_keys"] if columns[k][0] == number
        )
    for one, other in entry["foreign_keys"]:
        (here, name), (there, referred) = columns[one], columns[other]
        text += f"The {name} of {tables[here]} is the foreign key of {referred} of {tables[there]}.\n"
    return text


def test_all_of_spider(real_spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "train.json"
    assert prepare(real_spider, "--questions", "train_spider_min.json", "--out", out, "--json") == 0
    captured = capsys.readouterr()
    result = json.loads(captured.out.splitlines()[-1])
    assert (result["rows"], result["databases"], result["rejected"]) == (7000, 140, 0)
    assert "lacks the databases of 96 questions: baseball_1, soccer_1" in captured.err
    expected = {
        entry["db_id"]: sentences_by_position(entry) for entry in json.loads((real_spider / "tables.json").read_text())
    }
    gold = json.loads((real_spider / "train_spider_min.json").read_text())
    for row, question in zip(rows_of(out), gold, strict=True):
        assert row["db_id"] == question["db_id"]
        assert row["instruction"].endswith(f"\n##Instruction:\n{expected[row['db_id']]}\n")
        assert row["input"] == f"###Input:\n{question['question']}\n\n###Response:"
        assert row["output"] == question["query"]


BAD_ROWS = [
    ({"db_id": "departments", "question": "How many?", "query": "SELECT 1"}, "row 2: the db_id 'departments' is not among"),
    ({"db_id": "department_management", "question": "  ", "query": "SELECT 1"}, "row 3: the field 'question' is empty"),
    ({"db_id": "department_management", "question": "How many?", "query": ""}, "row 4: the field 'query' is empty"),
    ({"db_id": "department_management", "query": "SELECT 1"}, "row 5: has no field 'question' (fields found: db_id, query)"),
    ({"db_id": 7, "question": "How many?", "query": "SELECT 1"}, "row 6: the field 'db_id' is 7, not text"),
    ({"db_id": "department_management", "question": "How many?"}, "row 7: has no query to learn"),
]  # fmt: skip


def test_every_bad_row_is_told_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_spider(tmp_path / "set", [QUESTIONS[0], *(row for row, _ in BAD_ROWS)])
    assert prepare(folder, "--out", tmp_path / "o.json") == 2
    error = capsys.readouterr().err
    assert "6 rows can't be used" in error
    for _, expected in BAD_ROWS:
        assert f"train_spider.json, {expected}" in error
    assert "did you mean 'department_management'?" in error
    assert "--invalid-rows reject" in error
    assert not (tmp_path / "o.json").exists()


def test_bad_rows_can_be_left_out_and_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_spider(tmp_path / "set", [*(row for row, _ in BAD_ROWS), QUESTIONS[0]])
    assert prepare(folder, "--out", tmp_path / "o.json", "--invalid-rows", "reject") == 0
    assert "6 rows left out" in capsys.readouterr().out
    assert [row["output"] for row in rows_of(tmp_path / "o.json")] == [QUESTIONS[0]["query"]]
    rejected = [json.loads(line) for line in (tmp_path / "o.rejected.jsonl").read_text().splitlines()]
    assert sorted(item["row"] for item in rejected) == [1, 2, 3, 4, 5, 6]
    assert rejected[0]["values"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"table_names_original": "department"}, "table_names_original is 'department', not a list"),
        ({"foreign_keys": [[12, 99]]}, "foreign_keys[0] is [12, 99], not two of the columns, numbered from 1 to 13"),
        ({"primary_keys": [0]}, "primary_keys[0] is 0, but the columns are numbered from 1 to 13"),
        ({"column_types": ["text"]}, "column_types does not have the 14 entries"),
        (
            {"column_names_original": [[-1, "*"], [3, "x"], *DEPARTMENTS["column_names_original"][2:]]},
            "column_names_original[1] is [3, 'x'], but the tables are numbered from 0 to 2",
        ),
        (
            {"table_names_original": ["department", "head", "managers"]},
            "disagrees with its database: the database has no table managers; the database has a table management too",
        ),
        (
            {"column_names_original": [*DEPARTMENTS["column_names_original"][:13], [2, "acting"]]},
            "the database's table management has no column acting; "
            "the database's table management has a column temporary_acting too",
        ),
    ],
)
def test_a_faulty_schema_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    folder = write_spider(tmp_path / "set", **changes)
    assert prepare(folder, "--out", tmp_path / "o.json") == 2
    error = capsys.readouterr().err
    assert "tables.json, row 1: db_id 'department_management'" in error
    assert expected in error
    assert "train_spider.json, row 2: the schema of its db_id 'department_management' can't be used" in error


def test_a_damaged_database_is_told_with_its_schema(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (spider / "database/department_management/department_management.sqlite").write_bytes(b"not a database" * 100)
    assert prepare(spider, "--out", tmp_path / "o.json") == 2
    assert "department_management.sqlite can't be read: file is not a database" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--split", "dev"], "no questions for the split dev: dev.json is not there"),
        (["--split", "exam"], "--split: Input should be 'train', 'dev' or 'test'"),
        (["--questions", "none.json"], "'none.json' does not exist"),
        (["--tables", "none.json"], "the file of schemas 'none.json' does not exist"),
        (["--layout", "spyder"], "Did you mean 'spider'?"),
        (["--style", "schema_sentence"], "Did you mean 'schema_sentences'?"),
        (["--invalid-rows", "drop"], "It is error or reject"),
    ],
)
def test_what_can_not_be_asked_for(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert prepare(spider, "--out", tmp_path / "o.json", *arguments) == 2
    assert expected in capsys.readouterr().err


def test_the_rows_file_has_a_known_ending(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(spider, "--out", tmp_path / "o.txt") == 2
    assert "Name a .json file" in capsys.readouterr().err


def test_questions_are_not_written_over(spider: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (spider / "train_spider.json").read_bytes()
    assert prepare(spider, "--out", spider / "train_spider.json") == 2
    assert "is a file that is read here" in capsys.readouterr().err
    assert (spider / "train_spider.json").read_bytes() == before


def test_nothing_is_written_beside_a_database(spider: Path, tmp_path: Path) -> None:
    folder = spider / "database/department_management"
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert prepare(spider, "--out", tmp_path / "o.json") == 0
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_an_unknown_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(tmp_path / "nowhere", "--out", tmp_path / "o.json") == 2
    assert "does not exist" in capsys.readouterr().err
    write(tmp_path / "set" / "rows.json", [])
    assert prepare(tmp_path / "set", "--out", tmp_path / "o.json") == 2
    assert "looks like no layout" in capsys.readouterr().err
