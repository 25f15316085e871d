"""`luthier sql predict`: one query a line, in order; killed and gone on with; rows prepared or made now."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from luthier import cli
from luthier.text2sql.queries import NO_QUERY
from tests.evaluation.stand_in_server import says, stand_in
from tests.text2sql import scripted_engine
from tests.text2sql.conftest import QUESTIONS, prepare, rows_of, write

ASKED = scripted_engine.ASKED


def predict(
    data: object, out: Path, answers: Sequence[Sequence[str | None]], *more: object, stop_after: int | None = None
) -> int:
    ASKED.clear()
    engine = {"name": "tests.text2sql.scripted_engine", "answers": answers, "stop_after": stop_after}
    line = ["sql", "predict", "scripted", "--data", data, "--out", out, "--engine", json.dumps(engine), *more]
    return cli.main(list(map(str, line)))


def test_prepared_rows_are_asked_in_order(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows, out = tmp_path / "rows.json", tmp_path / "pred.sql"
    assert prepare(spider, "--out", rows) == 0
    answers = [["```sql\nSELECT count(*)\nFROM head;\n```"], [""]]
    assert predict(rows, out, answers, "--json") == 0
    assert out.read_text() == f"SELECT count(*) FROM head\n{NO_QUERY}\n"
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["rows"], result["without_query"], result["resumed"], result["tokens"]) == (2, 1, 0, 10)
    kept = [json.loads(line) for line in (tmp_path / "pred.answers.jsonl").read_text().splitlines()]
    assert [line["prediction"] for line in kept] == [answer for (answer,) in answers]
    first = rows_of(rows)[0]
    assert [message.content for message in ASKED[0][0].messages] == [f"{first['instruction']}\n{first['input']}"]
    assert ASKED[0][1].do_sample is False


def test_a_data_set_is_asked_as_its_prepared_rows_are(spider: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.json"
    style = ["--style", "create_table", "--sample-rows", 1]
    assert prepare(spider, *style, "--out", rows) == 0
    assert predict(rows, tmp_path / "a.sql", [["SELECT 1"], ["SELECT 2"]]) == 0
    asked = list(ASKED)
    assert predict(spider, tmp_path / "b.sql", [["SELECT 1"], ["SELECT 2"]], *style) == 0
    assert asked == ASKED and len(asked) == 2
    assert (tmp_path / "b.sql").read_text() == "SELECT 1\nSELECT 2\n"


def test_one_question_to_a_database(spider: Path, tmp_path: Path) -> None:
    database = spider / "database/department_management/department_management.sqlite"
    out = tmp_path / "pred.sql"
    assert predict(database, out, [["SELECT 1"]], "--question", "有几位主管？") == 0
    assert out.read_text() == "SELECT 1\n"
    (asked,) = ASKED[0][0].messages
    assert asked.content.endswith("###Input:\n有几位主管？\n\n###Response:")
    assert "department_management contains tables such as department, head, management." in asked.content


def test_the_history_is_asked_too(tmp_path: Path) -> None:
    row = {
        "db_id": "d",
        "instruction": "Tables: t.",
        "input": "And now?",
        "output": "SELECT 'gold'",
        "history": [["Before?", "SELECT 0"]],
    }
    rows = write(tmp_path / "rows.json", [row])
    assert predict(rows, tmp_path / "pred.sql", [["SELECT 1"]]) == 0
    assert [(message.role, message.content) for message in ASKED[0][0].messages] == [
        ("user", "Before?"),
        ("assistant", "SELECT 0"),
        ("user", "Tables: t.\nAnd now?"),
    ]


def test_a_stopped_run_goes_on(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pred.sql"
    answers = [["SELECT 1"], ["SELECT 2"]]
    assert predict(spider, out, answers, stop_after=1) == 130
    assert not out.exists()
    assert predict(spider, out, answers, "--set", "repetition_penalty=1.5") == 2
    assert "differs from this one in: generation" in capsys.readouterr().err
    assert predict(spider, out, answers) == 0
    assert [asked.row for asked, _ in ASKED] == [1]
    assert out.read_text() == "SELECT 1\nSELECT 2\n"
    assert "1 of 2 rows are answered already" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pred.answers.jsonl", "pred.sql", "spider"]


def test_a_run_killed_between_its_two_files_goes_on(spider: Path, tmp_path: Path) -> None:
    out, answers = tmp_path / "pred.sql", [["SELECT 1"], ["SELECT 2"]]
    assert predict(spider, out, answers, stop_after=1) == 130
    out.write_text("SELECT 1\nSELECT 2\n")  # the answers are written after the queries
    assert predict(spider, out, answers) == 0
    assert out.read_text() == "SELECT 1\nSELECT 2\n"
    assert (tmp_path / "pred.answers.jsonl").exists()


def test_rows_without_an_answer_are_told(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pred.sql"
    assert predict(spider, out, [["no idea"], [None]], "--json") == 0
    assert out.read_text() == f"no idea\n{NO_QUERY}\n"
    said = capsys.readouterr()
    told = (
        "1 of 2 rows have no answer and count as empty: the engine could not answer them, such as: the server is gone"
    )
    assert told in said.err and "hold no query" not in said.err
    result = json.loads(said.out.splitlines()[-1])
    assert (result["without_query"], result["unanswered"], result["remarks"]) == (0, 1, [told])


def test_a_file_that_is_there(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pred.sql"
    assert predict(spider, out, [["SELECT 1"], ["SELECT 2"]]) == 0
    assert predict(spider, out, [["SELECT 3"], ["SELECT 4"]]) == 2
    assert "is there already" in capsys.readouterr().err
    assert predict(spider, tmp_path, [["SELECT 1"]], "--overwrite") == 2
    assert "is a folder" in capsys.readouterr().err and not ASKED
    assert predict(spider, out, [["SELECT 3"], ["SELECT 4"]], "--overwrite") == 0
    assert out.read_text() == "SELECT 3\nSELECT 4\n"


@pytest.mark.parametrize(
    ("rows", "more", "expected"),
    [
        ([], [], "holds no rows"),
        ([{"db_id": "d", "instruction": " "}], [], "row 1: the field 'instruction' is empty"),
        ([{"db_id": "d", "instruction": "x", "history": 3}], [], "row 1: the field 'history' is int"),
        ([{"instruction": "x"}], [], "row 1: has no field 'db_id'"),
        ([{"db_id": "d", "instruction": "x"}], ["--shots", 2], "options of layouts and styles have no effect"),
        ([{"db_id": "d", "instruction": "x"}], ["--question", "y"], "options of layouts and styles have no effect"),
    ],
)
def test_rows_that_can_not_be_asked(
    rows: list[object], more: list[object], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert predict(write(tmp_path / "rows.json", rows), tmp_path / "pred.sql", [["SELECT 1"]], *more) == 2
    assert expected in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--temperature", "0.5"], "--temperature would have no effect without --samples"),
        (["--seed", "0", "--temperature", "0.5"], "--temperature and --seed would have no effect without --samples"),
        (["--samples", "2", "--temperature", "0"], "temperature: must be greater than 0, found 0"),
        (["--question", "How many?", "--questions", "more.json"], "--questions would have no effect with --question"),
        (["--question", "How many?", "--shots", "1"], "no questions to take examples from"),
    ],
)
def test_options_without_effect(
    more: list[str], expected: str, spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = spider / "database/department_management/department_management.sqlite"
    write(spider / "database/department_management/more.json", QUESTIONS)
    assert predict(database, tmp_path / "pred.sql", [["SELECT 1"]], *more) == 2
    assert expected in capsys.readouterr().err and not ASKED


def test_a_servers_tokens_are_not_counted_here(
    spider: Path, tmp_path: Path, tiny_llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pred.sql"
    asked = ["--data", str(spider), "--out", str(out), "--max-length", "9000"]
    with stand_in(lambda body, before: says("SELECT 1")) as server:
        engine = f"{{name: openai, base_url: '{server.url}'}}"
        assert cli.main(["sql", "predict", "gpt-of-nobody", *asked, "--engine", engine]) == 2
        assert "those of a server's model can't be counted here" in capsys.readouterr().err
        assert cli.main(["sql", "predict", "m", *asked, "--engine", engine, "--tokenizer", str(tiny_llama)]) == 0
    assert out.read_text() == "SELECT 1\nSELECT 1\n"


def test_nothing_that_is_read_or_still_good_is_lost(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "pred.answers.jsonl", tmp_path / "pred.sql"
    assert prepare(spider, "--out", rows) == 0
    before = rows.read_bytes()
    assert predict(rows, out, [["SELECT 1"]], "--overwrite") == 2
    assert "is a file that is read here" in capsys.readouterr().err
    out.write_text("SELECT 'yesterday'\n")
    assert predict(spider, out, [["SELECT 1"]], "--overwrite", "--layout", "cosql") == 2
    assert rows.read_bytes() == before and out.read_text() == "SELECT 'yesterday'\n"


@pytest.mark.parametrize("name", ["dev.json", "database/department_management/department_management.sqlite"])
def test_no_file_of_the_data_set_is_written_over(
    name: str, spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(spider / "dev.json", QUESTIONS)
    before = (spider / name).read_bytes()
    assert predict(spider, spider / name, [["SELECT 1"]] * 2, "--split", "dev", "--overwrite") == 2
    assert "is a file that is read here" in capsys.readouterr().err and not ASKED
    assert (spider / name).read_bytes() == before


def test_questions_that_can_not_be_asked(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(spider / "dev.json", [QUESTIONS[0], {"db_id": "nothing", "question": "?"}])
    assert predict(spider, tmp_path / "pred.sql", [["SELECT 1"]], "--split", "dev") == 2
    error = capsys.readouterr().err
    assert "row 2: the db_id 'nothing' is not among" in error and "predicted for every question" in error
    database = spider / "database/department_management/department_management.sqlite"
    assert predict(database, tmp_path / "pred.sql", [["SELECT 1"]], "--question", " ") == 2
    assert "question 1 is empty" in capsys.readouterr().err
    assert predict(database, tmp_path / "pred.sql", [["SELECT 1"]]) == 2
    assert "Ask one with --question" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("verb", "line", "told"),
    [
        ("prepare", ["spider", "--out", "rows.json"], "nothing was written"),
        ("predict", ["model", "--data", "spider", "--out", "pred.sql"], "what was answered is kept"),
        ("evaluate", ["--gold", "a", "--pred", "b", "--database", "c"], "nothing was written"),
    ],
)
def test_sigterm_ends_a_verb_as_ctrl_c_does(
    verb: str, line: list[str], told: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What it opened is closed: processes, and folders of copies."""
    closed: list[str] = []

    def work(*_: object, **__: object) -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)
        finally:
            closed.append(verb)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(f"luthier.commands.sql_{verb}.{verb}", work)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # were it not caught, the tests would end
    try:
        assert cli.main(["sql", verb, *line]) == 143
    finally:
        signal.signal(signal.SIGTERM, before)
    assert closed == [verb] and told in capsys.readouterr().err
