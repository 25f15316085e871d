"""Samples chosen by what the database says, and failing queries asked anew with its error."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from luthier.sandbox.sandbox import Outcome, Row, Sandbox
from luthier.text2sql.guiding import Guide, Result, bag_of
from luthier.text2sql.queries import NO_QUERY
from tests.text2sql.conftest import DEPARTMENTS_SQL, make_database, prepare
from tests.text2sql.test_predict import ASKED, predict

OLD = "SELECT name FROM head WHERE age > 60"
SAME_AS_OLD = "SELECT name FROM head ORDER BY age DESC"
YOUNG = "SELECT name FROM head WHERE age < 60"
BROKEN = "SELECT nome FROM head"


@pytest.fixture(scope="module")
def guide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guide]:
    path = make_database(tmp_path_factory.mktemp("guide") / "d.sqlite", DEPARTMENTS_SQL)
    with Sandbox() as sandbox:
        yield Guide(sandbox, {"d": path})


@pytest.mark.parametrize(
    ("queries", "expected"),
    [
        ([OLD], OLD),
        ([YOUNG, OLD, SAME_AS_OLD], OLD),  # two of three have the same rows, in whatever order
        ([YOUNG, OLD], YOUNG),  # a draw: the first
        ([BROKEN, BROKEN, YOUNG], YOUNG),  # what fails has no say, however often it is written
        ([NO_QUERY, BROKEN], NO_QUERY),
        ([BROKEN, "DROP TABLE head"], BROKEN),
        (["SELECT 1, 1", "SELECT count(*) FROM head WHERE age = 67"], "SELECT 1, 1"),  # other columns, another result
    ],
)
def test_the_result_that_most_agree_on(guide: Guide, queries: list[str], expected: str) -> None:
    assert guide.agreed("d", queries) == expected


def test_a_query_runs_once(guide: Guide) -> None:
    assert guide.result("d", OLD) is guide.result("d", OLD)
    assert guide.result("d", NO_QUERY).error == "there is no query"


def test_all_cores_run_the_queries_and_no_rows_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_database(tmp_path / "d.sqlite", DEPARTMENTS_SQL)
    told: list[tuple[int, int]] = []
    with Sandbox(2) as sandbox:
        guide = Guide(sandbox, {"d": path})
        # two wait for each other: one worker alone would never end
        meeting, whole = threading.Barrier(2, timeout=20), sandbox.run

        def met(database: Path, query: str) -> Outcome:
            meeting.wait()
            return whole(database, query)

        monkeypatch.setattr(sandbox, "run", met)
        guide.run(
            [("d", OLD), ("d", NO_QUERY), ("d", BROKEN), ("d", OLD)], lambda done, total: told.append((done, total))
        )
        assert told == [(1, 2), (2, 2)]
        guide.run([("d", OLD)], lambda done, total: told.append((done, total)))
        assert len(told) == 2 and guide.result("d", BROKEN).error == "no such column: nome"
        many = f"SELECT {', '.join(['a.*'] * 3)} FROM head a, head b, head c, head d"
        monkeypatch.setattr(sandbox, "run", whole)
        assert guide.result("d", many) == Result("", (12, guide.result("d", many).bag[1]))  # type: ignore[index]


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ([(1, "a"), (2, "b")], [(2.0, "b"), (1, "a")], True),
        ([(1,), (1,), (2,)], [(1,), (2,), (2,)], False),  # each as often
        ([(-1,)], [(-2,)], False),  # Python's hashes of these are equal
        ([(1,)], [("1",)], False),
        ([(None,)], [("None",)], False),
        ([(b"a",)], [("a",)], False),
        ([("a\n[1]",)], [("a",), (1,)], False),
        ([(1e308,), (float("inf"),)], [(float("inf"),), (1e308,)], True),
        ([], [], True),
    ],
)
def test_results_are_bags(first: list[Row], second: list[Row], same: bool) -> None:
    one, other = (bag_of(Outcome(("x",), tuple(rows))) for rows in (first, second))
    assert (one == other) is same


def test_samples_are_drawn_and_chosen_by_their_results(spider: Path, tmp_path: Path) -> None:
    out = tmp_path / "pred.sql"
    answers = [[YOUNG, OLD, SAME_AS_OLD], [BROKEN, BROKEN, YOUNG]]
    assert predict(spider, out, answers, "--samples", 3, "--seed", 7) == 0
    assert out.read_text().splitlines() == [OLD, YOUNG]
    settings = ASKED[0][1]
    assert (settings.num_return_sequences, settings.do_sample, settings.seed, settings.temperature) == (3, True, 7, 0.8)


def test_a_failing_query_is_asked_anew_with_its_error(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pred.sql"
    answers = [[BROKEN, "SELECT nam FROM head", OLD], [YOUNG]]
    assert predict(spider, out, answers, "--repairs", 2, "--json") == 0
    assert out.read_text().splitlines() == [OLD, YOUNG]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["failing"], result["repaired"], result["tokens"]) == (0, 1, 20)
    assert [asked.row for asked, _ in ASKED] == [0, 1, 0, 0]
    *_, query, told = ASKED[2][0].messages
    assert (query.role, query.content) == ("assistant", BROKEN)
    assert (told.role, told.content) == (
        "user",
        "The query fails: no such column: nome\nWrite it anew, so that it runs.",
    )
    assert "no such column: nam\n" in ASKED[3][0].messages[-1].content
    assert len(ASKED[3][0].messages) == 5


def test_what_can_not_be_repaired_stays(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pred.sql"
    answers = [[BROKEN, "SELECT nam FROM head"], [BROKEN, YOUNG]]
    assert predict(spider, out, answers, "--repairs", 1) == 0
    assert out.read_text().splitlines() == [BROKEN, YOUNG]
    assert "1 queries do not run; 1 did after they were asked anew" in capsys.readouterr().out


def test_a_row_without_an_answer_has_nothing_to_repair(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pred.sql"
    assert predict(spider, out, [[None, OLD], [BROKEN, YOUNG]], "--repairs", 1, "--json") == 0
    assert out.read_text().splitlines() == [NO_QUERY, YOUNG]
    assert [asked.row for asked, _ in ASKED] == [0, 1, 1]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["unanswered"], result["failing"], result["repaired"]) == (1, 0, 1)


def test_a_sample_without_an_answer_leaves_the_others(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pred.sql"
    assert predict(spider, out, [[None, OLD], [YOUNG, YOUNG]], "--samples", 2, "--json") == 0
    assert out.read_text().splitlines() == [OLD, YOUNG]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["unanswered"], result["remarks"], result["failing"]) == (0, [], 0)


def test_a_repair_without_an_answer_is_told_and_asked_for_again(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "pred.sql"
    answers = [[BROKEN, None, OLD], [YOUNG]]
    assert predict(spider, out, answers, "--repairs", 2, "--json") == 0
    assert out.read_text().splitlines() == [BROKEN, YOUNG]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["failing"], result["repaired"], result["unrepaired"]) == (1, 0, 1)
    assert result["remarks"] == ["1 failing queries were asked anew and got no answer, such as: the server is gone"]
    lines = [json.loads(line) for line in (tmp_path / "pred.answers.jsonl").read_text().splitlines()]
    assert "repairs" not in lines[0]
    # stopped at another row's repair, it asks for this one again
    again = tmp_path / "again.sql"
    assert predict(spider, again, [[BROKEN, None], [BROKEN, OLD]], "--repairs", 1, stop_after=3) == 130
    assert predict(spider, again, [[OLD], [YOUNG]], "--repairs", 1) == 0
    assert again.read_text().splitlines() == [OLD, YOUNG]


@pytest.mark.parametrize("stop_after", range(1, 6))
def test_a_run_stopped_anywhere_asks_nothing_twice(spider: Path, tmp_path: Path, stop_after: int) -> None:
    """Two rows and four repairs, stopped after some of them; the second run answers the rest, and ends as an unbroken one."""
    answers = [[BROKEN, "SELECT nam FROM head", OLD], [BROKEN, "SELECT na FROM head", "SELECT n FROM head"]]
    whole, out = tmp_path / "whole.sql", tmp_path / "pred.sql"
    assert predict(spider, whole, answers, "--repairs", 2) == 0
    everything = list(ASKED)
    assert predict(spider, out, answers, "--repairs", 2, stop_after=stop_after) == 130
    first = list(ASKED)
    assert not out.exists() and len(first) == stop_after
    given = [sum(request.row == row for request, _ in first) for row in range(2)]
    assert predict(spider, out, [own[count:] for own, count in zip(answers, given, strict=True)], "--repairs", 2) == 0
    assert [*first, *ASKED] == everything
    assert out.read_bytes() == whole.read_bytes()
    said = [tmp_path / f"{name}.answers.jsonl" for name in ("pred", "whole")]
    assert said[0].read_bytes() == said[1].read_bytes()


def test_the_answers_tell_what_was_said_to_each_failure(spider: Path, tmp_path: Path) -> None:
    answers = [[BROKEN, "SELECT nam FROM head", OLD], [YOUNG]]
    assert predict(spider, tmp_path / "pred.sql", answers, "--repairs", 2) == 0
    lines = [json.loads(line) for line in (tmp_path / "pred.answers.jsonl").read_text().splitlines()]
    said = {"finish_reason": "stop", "tokens": 5}
    assert lines[0]["repairs"] == [
        {"query": BROKEN, "error": "no such column: nome", "prediction": "SELECT nam FROM head", **said},
        {"query": "SELECT nam FROM head", "error": "no such column: nam", "prediction": OLD, **said},
    ]
    assert "repairs" not in lines[1]


def test_samples_and_repairs_together(spider: Path, tmp_path: Path) -> None:
    out = tmp_path / "pred.sql"
    answers = [[BROKEN, BROKEN, OLD], [YOUNG, OLD]]
    assert predict(spider, out, answers, "--samples", 2, "--repairs", 1) == 0
    assert out.read_text().splitlines() == [OLD, YOUNG]
    repair = ASKED[-1][1]
    assert (repair.do_sample, repair.num_return_sequences) == (False, 1)


def test_prepared_rows_need_the_folder_of_databases(
    spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, out = tmp_path / "rows.json", tmp_path / "pred.sql"
    assert prepare(spider, "--out", rows) == 0
    answers = [[BROKEN, OLD], [YOUNG]]
    assert predict(rows, out, answers, "--repairs", 1) == 2
    assert "missing for 1 of the databases: department_management" in capsys.readouterr().err
    assert predict(rows, out, answers, "--repairs", 1, "--database", spider / "database") == 0
    assert out.read_text().splitlines() == [OLD, YOUNG]
    assert predict(rows, out, answers, "--database", spider / "database", "--overwrite") == 2
    assert "--database has no effect on prepared rows" in capsys.readouterr().err


def test_a_temperature_without_samples(spider: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(spider, tmp_path / "pred.sql", [[OLD], [OLD]], "--temperature", 0.5) == 2
    assert "no effect without --samples" in capsys.readouterr().err


def test_one_answer_is_drawn(spider: Path, tmp_path: Path) -> None:
    drawn = ["--temperature", 0.5, "--seed", 3, "--set", "do_sample=true"]
    assert predict(spider, tmp_path / "pred.sql", [[OLD], [OLD]], *drawn) == 0
    settings = ASKED[0][1]
    assert (settings.num_return_sequences, settings.do_sample, settings.seed, settings.temperature) == (1, True, 3, 0.5)
    assert predict(spider, tmp_path / "other.sql", [[OLD], [OLD]], "--seed", 4, "--set", "do_sample=true") == 0
    assert (ASKED[0][1].seed, ASKED[0][1].temperature) == (4, 1.0)


def test_the_databases_stay_as_they_are(spider: Path, tmp_path: Path) -> None:
    database = spider / "database/department_management/department_management.sqlite"
    before = database.read_bytes()
    hostile = "DELETE FROM head"
    assert predict(spider, tmp_path / "pred.sql", [[hostile, hostile], [OLD]], "--repairs", 1) == 0
    assert database.read_bytes() == before
    assert [path.name for path in database.parent.iterdir()] == [database.name]
