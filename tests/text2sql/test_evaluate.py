"""`luthier sql evaluate`: verdicts of files, bad input, and what is written."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.commands.sql_evaluate import EvaluatedQueries, evaluate
from luthier.foundation.errors import DataError, UserError
from tests.sandbox.conftest import state_of
from tests.text2sql.conftest import DEPARTMENTS, DEPARTMENTS_SQL, make_database, write

DB = "department_management"
GOLD = [
    "SELECT count(*) FROM head WHERE age > 67",
    "SELECT name FROM head ORDER BY age DESC",
    "SELECT Name, Budget_in_Billions FROM department",
    "SELECT T1.name FROM head AS T1 JOIN management AS T2 ON T1.head_ID = T2.head_ID WHERE T2.temporary_acting = 'Yes'",
]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """gold.sql, tables.json and database/ of four queries."""
    write(tmp_path / "tables.json", [DEPARTMENTS])
    make_database(tmp_path / "database" / DB / f"{DB}.sqlite", DEPARTMENTS_SQL)
    (tmp_path / "gold.sql").write_text("".join(f"{query}\t{DB}\n" for query in GOLD))
    return tmp_path


def run(files: Path, predictions: str | bytes, **settings: Any) -> EvaluatedQueries:
    path = files / settings.pop("name", "pred.sql")
    path.write_bytes(predictions if isinstance(predictions, bytes) else predictions.encode())
    before = state_of(files / "database")
    result = evaluate(
        settings.pop("gold", files / "gold.sql"),
        path,
        files / "database",
        files / "tables.json",
        **{"jobs": 2, "timeout": 1.0, **settings},
    )
    assert state_of(files / "database") == before
    return result


def verdicts(result: EvaluatedQueries) -> list[tuple[int | None, int]]:
    return [(item.verdict.exact, item.verdict.execution) for item in result.items]


def reasons(result: EvaluatedQueries) -> list[str]:
    return [item.verdict.reason for item in result.items]


def test_gold_against_gold(files: Path) -> None:
    result = run(files, "\n".join(GOLD))
    assert verdicts(result) == [(1, 1)] * 4 and reasons(result) == [""] * 4
    assert [item.verdict.hardness for item in result.items] == ["easy", "easy", "medium", "medium"]
    assert (result.summary["exact"], result.summary["execution"], result.summary["count"]) == (1.0, 1.0, 4)
    # a level without items is there, as in the official table
    assert list(result.summary["levels"]) == ["easy", "medium", "hard", "extra", "all"]
    assert result.summary["levels"]["extra"] == {"count": 0, "exact": 0.0, "execution": 0.0}
    assert result.summary["partial"]["f1"]["keywords"] == {
        "easy": 1.0,
        "medium": 1.0,
        "hard": 0.0,
        "extra": 0.0,
        "all": 1.0,
    }


def test_what_is_wrong_is_said(files: Path) -> None:
    predictions = [
        "SELECT count(*) FROM head WHERE age > 66",
        "SELECT name FROM head ORDER BY age",
        "SELECT Budget_in_Billions, Name FROM department WHERE 1 = 1",
        "SELECT name FROM management",
    ]
    result = run(files, "\n".join(predictions))
    assert verdicts(result) == [(1, 0), (0, 0), (0, 1), (0, 0)]
    assert reasons(result) == [
        "the rows differ",
        "the rows are in another order",
        "not in Spider's subset of SQL: there is no column 1",
        "SQLite can't run it: no such column: name",
    ]


def test_the_results_file_and_the_last_line(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (files / "pred.sql").write_text("\n".join([GOLD[0], GOLD[1], GOLD[2], "nonsense"]))
    arguments = ["--gold", "gold.sql", "--pred", "pred.sql", "--database", "database", "--tables", "tables.json"]
    places = [str(files / part) if not part.startswith("--") else part for part in arguments]
    out, page = files / "made" / "out.json", files / "page.html"
    assert main(["sql", "evaluate", *places, "--out", str(out), "--html", str(page), "--json", "--jobs", "1"]) == 0
    told = capsys.readouterr()
    last = json.loads(told.out.splitlines()[-1])
    written = json.loads(out.read_text())
    assert last["summary"] == written["summary"] and last["files"] == [str(out), str(page)]
    assert written["items"][3] == {
        "index": 3,
        "db_id": DB,
        "hardness": "medium",
        "exact": 0,
        "execution": 0,
        "reason": 'SQLite can\'t run it: near "nonsense": syntax error',
    }
    assert [item["index"] for item in written["items"]] == [0, 1, 2, 3]
    assert written["summary"]["levels"]["all"] == {"count": 4, "exact": 0.75, "execution": 0.75}
    assert written["summary"]["partial"]["recall"]["select"] == {
        "easy": 1.0,
        "medium": 0.5,
        "hard": 0.0,
        "extra": 0.0,
        "all": 0.75,
    }
    assert "execution   1.000    0.500   0.000   0.000   0.750" in told.err
    assert "partial match: accuracy" in told.err


def test_too_few_and_too_many_lines(files: Path) -> None:
    few = run(files, f"{GOLD[0]}\n\n")
    assert verdicts(few) == [(1, 1), (0, 0), (0, 0), (0, 0)]
    assert few.notes == (f"{files / 'pred.sql'} has 1 lines for 4 gold queries: the 3 missing ones score 0",)
    assert reasons(few)[3] == "no prediction: the file ends at line 1"
    many = run(files, "\n".join([*GOLD, "SELECT 1", "SELECT 2"]))
    assert verdicts(many) == [(1, 1)] * 4 and "has 6 lines for 4 gold queries" in many.notes[0]
    assert verdicts(run(files, "")) == [(0, 0)] * 4


def test_an_empty_line_is_an_empty_prediction(files: Path) -> None:
    result = run(files, "\n".join([GOLD[0], "", "   ", GOLD[3]]))
    assert verdicts(result) == [(1, 1), (0, 0), (0, 0), (1, 1)]
    assert reasons(result)[1] == "the prediction is empty" and not result.notes


def test_bytes_that_are_no_utf8(files: Path) -> None:
    lines = [query.encode() for query in GOLD]
    lines[1] = b"SELECT name FROM head WHERE name = 'Garc\xeda'"
    result = run(files, b"\r\n".join(lines))
    assert verdicts(result) == [(1, 1), (0, 0), (1, 1), (1, 1)]
    assert reasons(result)[1] == "the prediction is no UTF-8: byte 0xed at its place 41"


def test_what_would_do_harm_ends_with_a_reason(files: Path) -> None:
    (files / "gold.sql").write_text("".join(f"{GOLD[0]}\t{DB}\n" for _ in range(8)))
    started = time.monotonic()
    result = run(
        files,
        "\n".join(
            [
                "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c",
                f"ATTACH '{files}/database/{DB}/new.sqlite' AS x",
                f"VACUUM INTO '{files}/database/new.sqlite'",
                "PRAGMA user_version = 5",
                "SELECT load_extension('x')",
                f"{GOLD[0]}; DROP TABLE head",
                "DELETE FROM head",
                GOLD[0],
            ]
        ),
        timeout=0.5,
    )
    assert time.monotonic() - started < 10
    assert verdicts(result) == [(0, 0)] * 7 + [(1, 1)]
    assert reasons(result)[:7] == [
        "stopped after 0.5 seconds",
        "not allowed: ATTACH",
        "not allowed: ATTACH",
        "not allowed: PRAGMA",
        "not allowed: the function load_extension",
        "several statements",
        "not allowed: DELETE",
    ]


def test_databases_and_tables_that_are_of_no_use(files: Path) -> None:
    other = dict(DEPARTMENTS, db_id="corrupt")
    renamed = dict(DEPARTMENTS, db_id="renamed", table_names_original=["department", "boss", "management"])
    broken = dict(DEPARTMENTS, db_id="broken", foreign_keys=[[99, 1]])
    missing = dict(DEPARTMENTS, db_id="missing")
    write(files / "tables.json", [DEPARTMENTS, other, renamed, broken, missing])
    (files / "database" / "corrupt").mkdir()
    (files / "database" / "corrupt" / "corrupt.sqlite").write_bytes(b"no database" * 99)
    for name in ("renamed", "broken", "unknown"):
        shutil.copytree(files / "database" / DB, files / "database" / name)
        (files / "database" / name / f"{DB}.sqlite").rename(files / "database" / name / f"{name}.sqlite")
    names = ["missing", "corrupt", "renamed", "broken", "unknown", "../database", "x" * 300, DB]
    (files / "gold.sql").write_text("".join(f"{GOLD[0]}\t{name}\n" for name in names))
    result = run(files, "\n".join([GOLD[0]] * len(names)))
    assert verdicts(result) == [(0, 0)] * 7 + [(1, 1)]
    said = reasons(result)
    assert said[0].startswith("there is no database ") and "is no SQLite database" in said[1]
    assert said[2] == (
        "tables.json disagrees with the database: the database has no table boss; the database has a table head too"
    )
    assert "foreign_keys[0] is [99, 1]" in said[3]
    assert said[4] == "tables.json has no database 'unknown'" and "is no name of a database" in said[5]
    assert said[6].startswith("there is no database ")
    # the gold query is read with what is known of its tables
    assert [item.verdict.hardness for item in result.items] == ["easy"] * 2 + [
        "easy",
        "easy",
        "easy",
        "unknown",
        "unknown",
        "easy",
    ]


def test_a_gold_query_that_can_not_be_run_or_read(files: Path) -> None:
    (files / "gold.sql").write_text(f"SELECT absent FROM head\t{DB}\nSELECT upper(name) FROM head\t{DB}\n")
    result = run(files, "SELECT name FROM head\nSELECT upper(name) FROM head\n")
    assert verdicts(result) == [(0, 0), (0, 1)]
    assert reasons(result) == [
        "the gold query can't be run: no such column: absent",
        "the gold query can't be parsed: there is no column upper",
    ]
    assert result.summary["levels"]["unknown"]["count"] == 2


def test_a_prediction_must_be_right_on_every_database_of_a_folder(files: Path) -> None:
    folder = files / "database" / DB
    make_database(folder / "second.sqlite", DEPARTMENTS_SQL + "UPDATE head SET age = 60;")
    (files / "gold.sql").write_text(f"SELECT count(*) FROM head WHERE age > 66\t{DB}\n" * 2)
    result = run(files, "SELECT 2\nSELECT count(*) FROM head WHERE age > 65\n")
    assert [item.verdict.execution for item in result.items] == [0, 1]


def test_distinct_and_order_as_the_definition_has_them(files: Path) -> None:
    (files / "gold.sql").write_text(f"SELECT DISTINCT Creation FROM department\t{DB}\nSELECT name FROM head\t{DB}\n")
    result = run(files, "SELECT Creation FROM department\nSELECT name FROM head ORDER BY age DESC\n")
    assert [item.verdict.execution for item in result.items] == [1, 1]


def test_conversations(files: Path) -> None:
    lines = [f"{query}\t{DB}" for query in GOLD]
    (files / "gold.sql").write_text("\n".join([*lines[:2], "", *lines[2:], ""]))
    blank = run(files, "\n".join([GOLD[0], GOLD[1], "", GOLD[2], "SELECT 1"]))
    assert verdicts(blank)[:3] == [(1, 1)] * 3 and verdicts(blank)[3] == (0, 0)
    assert blank.summary["conversations"] == {"count": 2, "exact": 0.5, "execution": 0.5}
    assert blank.summary["turns"] == {
        "turn 1": {"count": 2, "exact": 1.0, "execution": 1.0},
        "turn 2": {"count": 2, "exact": 0.5, "execution": 0.5},
    }
    flat = run(files, "\n".join([*GOLD[:3], "SELECT 1"]))
    assert verdicts(flat) == verdicts(blank)
    empty = run(files, "\n".join([GOLD[0], "", "", GOLD[2], GOLD[3]]))
    assert verdicts(empty) == [(1, 1), (0, 0), (1, 1), (1, 1)]
    short = run(files, "\n".join([GOLD[0], "", GOLD[2], GOLD[3]]))
    assert verdicts(short) == [(1, 1), (0, 0), (1, 1), (1, 1)]
    assert "conversation 1 of" in short.notes[0]
    assert reasons(short)[1] == "no prediction: the file's conversation 1 ends before it"


def test_json_of_rows_and_of_conversations(files: Path) -> None:
    rows = [{"db_id": DB, "query": query, "question": f"Question {place}?"} for place, query in enumerate(GOLD)]
    write(files / "gold.json", rows)
    predicted = json.dumps([{"prediction": GOLD[0]}, GOLD[1], {"query": f"  {GOLD[2]}\n"}, {"nothing": 1}])
    result = run(files, predicted, gold=files / "gold.json", name="pred.json")
    assert verdicts(result) == [(1, 1)] * 3 + [(0, 0)]
    assert reasons(result)[3] == 'the prediction is no text: {"nothing": 1}'
    assert result.items[1].gold.question == "Question 1?"
    talk = [{"database_id": DB, "interaction": [{"utterance": "a", "query": GOLD[0]}, {"query": GOLD[1]}]}] * 2
    write(files / "talk.json", talk)
    spoken = run(files, "\n".join(GOLD[:2] * 2), gold=files / "talk.json")
    assert verdicts(spoken) == [(1, 1)] * 4 and spoken.summary["conversations"]["count"] == 2


def test_lines_of_json_are_judged_one_by_one(files: Path) -> None:
    lines = [json.dumps(GOLD[0]), "{broken", "", json.dumps({"prediction": f"{GOLD[3]}\u2028"}, ensure_ascii=False)]
    result = run(files, "\n".join(lines), name="pred.jsonl")
    assert verdicts(result) == [(1, 1), (0, 0), (0, 0), (1, 1)] and not result.notes
    assert reasons(result)[1].startswith("the line is no JSON: ") and reasons(result)[2] == "the prediction is empty"
    spaced = run(files, "\n\n".join(json.dumps(query) for query in GOLD), name="pred.jsonl")
    assert verdicts(spaced) == [(1, 1)] * 4
    octets = run(files, b'"SELECT \xed"\n' + json.dumps(GOLD[1]).encode(), name="pred.jsonl")
    assert reasons(octets)[0] == "the prediction is no UTF-8: byte 0xed at its place 9"


def test_half_a_character_is_no_text(files: Path) -> None:
    page = files / "page.html"
    result = run(files, '["SELECT \\ud800", null]', name="pred.json", html=page)
    assert verdicts(result) == [(0, 0)] * 4 and "half a character" in reasons(result)[0]
    assert "half a character" in page.read_text()


def test_half_a_character_in_a_gold_file_ends_no_run(files: Path) -> None:
    rows = [
        {"db_id": "\\ud800", "query": "SELECT 1"},
        {"db_id": DB, "query": "SELECT '\\ud800'", "question": "\\udfff?"},
    ]
    (files / "gold.json").write_text(json.dumps(rows).replace("\\\\", "\\"))
    out, html = files / "scores.json", files / "wrong.html"
    result = run(files, "SELECT 1\nSELECT '?'\n", gold=files / "gold.json", out=out, html=html)
    assert verdicts(result) == [(0, 0), (0, 1)]
    assert json.loads(out.read_text())["items"][0]["db_id"] == "?"


def test_an_empty_file_of_any_kind_holds_no_prediction(files: Path) -> None:
    for name in ("pred.sql", "pred.json", "pred.jsonl"):
        assert verdicts(run(files, "", name=name)) == [(0, 0)] * 4


def test_numbered_predictions_keep_their_numbers(files: Path) -> None:
    numbered = {"3": GOLD[3], "1": GOLD[1], "12": "SELECT 1"}
    result = run(files, json.dumps(numbered), name="pred.json")
    assert verdicts(result) == [(0, 0), (1, 1), (0, 0), (1, 1)]
    assert reasons(result)[0] == f"no prediction: {files / 'pred.json'} has no number 0"
    assert "of other numbers than 0 to 3, which were not looked at: ['12']" in result.notes[0]


def test_bird(files: Path) -> None:
    queries = ["SELECT Creation FROM department", "SELECT name FROM head", "SELECT name, age FROM head", "SELECT 1"]
    rows = [
        {"question_id": place, "db_id": DB, "SQL": query, "difficulty": difficulty}
        for place, (query, difficulty) in enumerate(
            zip(queries, ["simple", "simple", "moderate", "challenging"], strict=True)
        )
    ]
    write(files / "gold.json", rows)
    predicted = {
        "0": f"SELECT DISTINCT Creation FROM department\t----- bird -----\t{DB}",
        "1": f"SELECT name FROM head ORDER BY age\t----- bird -----\t{DB}",
        "2": f"SELECT age, name FROM head\t----- bird -----\t{DB}",
        "3": f"SELECT\n\tx\t----- bird -----\t{DB}",
    }
    settings: dict[str, Any] = {"gold": files / "gold.json", "name": "pred.json", "benchmark": "bird"}
    result = run(files, json.dumps(predicted), runs=3, **settings)
    assert verdicts(result) == [(None, 1), (None, 1), (None, 0), (None, 0)]
    assert reasons(result)[2:] == ["the rows differ", "SQLite can't run it: no such column: x"]
    assert result.summary["levels"]["simple"] == {"count": 2, "exact": None, "execution": 1.0}
    assert list(result.summary["levels"]) == ["simple", "moderate", "challenging", "all"]
    ratios = [item.verdict.time_ratio for item in result.items]
    assert ratios[2:] == [0.0, 0.0] and all(ratio is not None and ratio > 0 for ratio in ratios[:2])
    assert result.summary["ves"] == pytest.approx(100 * sum(ratio**0.5 for ratio in ratios if ratio) / 4)
    assert 0 < result.summary["r_ves"] <= 100 * 1.25**0.5 / 2
    assert "partial" not in result.summary
    untimed = run(files, json.dumps(predicted), runs=0, **settings)
    assert "ves" not in untimed.summary and untimed.summary["execution"] == 0.5


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ("SELECT 1\n", "line 1 is no gold query: 'SELECT 1'"),
        ("", "is empty"),
        ("\n\n", "holds no query"),
    ],
)
def test_a_gold_file_that_is_of_no_use(files: Path, content: str, found: str) -> None:
    (files / "gold.sql").write_text(content)
    with pytest.raises(UserError, match=re.escape(found)):
        run(files, "SELECT 1")


def test_other_files_that_are_of_no_use(files: Path) -> None:
    write(files / "gold.json", [{"db_id": DB}])
    with pytest.raises(DataError, match=r"row 1 is no gold query: it has db_id"):
        run(files, "SELECT 1", gold=files / "gold.json")
    (files / "gold.json").write_text("[")
    with pytest.raises(DataError, match="is no JSON"):
        run(files, "SELECT 1", gold=files / "gold.json")
    with pytest.raises(UserError, match="the predictions file"):
        evaluate(files / "gold.sql", files / "absent.sql", files / "database", files / "tables.json")
    with pytest.raises(DataError, match="is a folder"):
        run(files, "SELECT 1", gold=files / "database")
    with pytest.raises(UserError, match="is no folder"):
        evaluate(files / "gold.sql", files / "gold.sql", files / "absent", files / "tables.json")
    with pytest.raises(UserError, match=r"--html '.*' is a folder"):
        run(files, "SELECT 1", gold=files / "gold.sql", html=files)
    with pytest.raises(UserError, match=r"--out '.*gold\.sql' is a file that is read here"):
        run(files, "SELECT 1", out=files / "gold.sql")
    with pytest.raises(UserError, match="--runs would have no effect without --benchmark bird"):
        run(files, "SELECT 1", runs=0)
    with pytest.raises(UserError, match="--timeout is nan"):
        run(files, "SELECT 1", timeout=float("nan"))
    with pytest.raises(UserError, match="--tables is missing"):
        evaluate(files / "gold.sql", files / "gold.sql", files / "database")


def test_a_file_of_schemas_without_any(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(files / "tables.json", [{"name": "no schema"}])
    places = {"gold": "gold.sql", "pred": "gold.sql", "database": "database", "tables": "tables.json"}
    given = [part for name, file in places.items() for part in (f"--{name}", str(files / file))]
    assert main(["sql", "evaluate", *given]) == 0
    assert "holds no schema that can be used, so nothing can be right" in " ".join(capsys.readouterr().out.split())


def test_a_benchmark_that_is_not_known(files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--gold", "a", "--pred", "b", "--database", "c", "--benchmark", "wikisql"]
    assert main(["sql", "evaluate", *given]) == 2
    assert "--benchmark 'wikisql' is not known" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_no_process_and_no_copy(files: Path, number: int, status: int) -> None:
    """Ctrl-C or SIGTERM while a query runs: the command ends at once, with it the process that runs the query and the copies."""
    bomb = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT count(*) FROM c"
    (files / "pred.sql").write_text("\n".join([bomb] * 4))
    # a shell that started the tests in the background has SIGINT ignored
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from luthier.cli import main; sys.exit(main(sys.argv[1:]))"
    places = [str(files / name) for name in ("gold.sql", "pred.sql", "database", "tables.json")]
    options = [
        part for pair in zip(("--gold", "--pred", "--database", "--tables"), places, strict=True) for part in pair
    ]
    command = [sys.executable, "-c", code, "sql", "evaluate", *options, "--timeout", "60", "--jobs", "1"]
    temporary = files / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary)}
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment)
    children: list[str] = []
    while not children and process.poll() is None:
        time.sleep(0.1)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            children += (task / "children").read_text().split()
    while not list(temporary.glob("*/*.sqlite")) and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait(timeout=20) == status
    assert children and list(temporary.iterdir()) == []
    for child in children:
        deadline = time.monotonic() + 5
        while Path(f"/proc/{child}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not Path(f"/proc/{child}").exists()


def test_a_database_with_other_text_encodings(files: Path) -> None:
    path = files / "database" / DB / f"{DB}.sqlite"
    with closing(sqlite3.connect(path)) as opened:
        opened.execute("UPDATE head SET name = CAST(x'47617263ed61' AS TEXT) WHERE head_ID = 2")
        opened.commit()
    (files / "gold.sql").write_text(f"SELECT name FROM head\t{DB}\n")
    result = run(files, "SELECT name FROM head")
    assert verdicts(result) == [(1, 1)]
    assert result.items[0].verdict.result is not None and ("Garca",) in result.items[0].verdict.result.rows
