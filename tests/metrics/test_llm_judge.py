"""The judge, asked over a real socket."""

from __future__ import annotations

import email.utils
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from luthier.commands.evaluate import Asked, evaluate
from luthier.config.generation_section import GenerationSettings
from luthier.evaluation.comparison import compare
from luthier.evaluation.results import verdicts_path
from luthier.evaluation.statistics import Drawing, Statistics, interval
from luthier.foundation.errors import UserError
from luthier.foundation.network import asked_wait
from luthier.metrics import llm_judge
from luthier.metrics._text import TextRow
from luthier.training.answering import Answering
from tests.tiny import tiny_tokenizer


@contextmanager
def judge(answer: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server whose judgements `answer(first, second, asked)` writes: a text, or a status."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            text = body["messages"][0]["content"]
            first, second = text.split("[Answer A]\n")[1].split("\n\nEnd with")[0].split("\n\n[Answer B]\n")
            given = answer(first, second, len(asked))
            status, reply = (given, "busy") if isinstance(given, int) else (200, given)
            headers = {"Retry-After": "7"} if status == 429 else {}
            message = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
            data = json.dumps(message).encode() if status == 200 else reply.encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(data))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *args: Any) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def scores(base_url: str, *answers: TextRow, **options: Any) -> list[float]:
    metric = llm_judge.build(llm_judge.Options(base_url=base_url, **options))
    return metric(answers)["llm_judge"].rows_E.tolist()  # type: ignore[union-attr]


GOOD = TextRow("a long good answer", "short", "Why {second}?")


def test_the_order_is_swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", "k")
    longer = lambda first, second, _: "Reasons. [[A]]" if len(first) > len(second) else "I first said [[A]], now [[B]]"  # noqa: E731
    with judge(longer) as (url, asked):
        assert scores(url, GOOD, TextRow("x", "a longer one"), api_key_env="JUDGE_KEY", model="m", max_tokens=9) == [
            1.0,
            0.0,
        ]
    assert len(asked) == 4
    assert {(one["path"], one["key"], one["model"], one["max_tokens"]) for one in asked} == {
        ("/v1/chat/completions", "Bearer k", "m", 9)
    }
    texts = [one["messages"][0]["content"] for one in asked if "Why" in one["messages"][0]["content"]]
    assert len(set(texts)) == 2 and all(
        "Why {second}?" in text for text in texts
    )  # what a row holds is not filled again


def test_a_judge_that_always_names_the_first_sees_ties() -> None:
    with judge(lambda *_: "[[A]]") as (url, _):
        assert scores(url, GOOD, TextRow("x", "y")) == [0.5, 0.5]
    with judge(lambda *_: "[[C]]") as (url, _):
        assert scores(url, GOOD) == [0.5]


def test_it_asks_again_after_failures_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_judge.Judge, "_pause", lambda self, seconds: None)
    with judge(lambda first, second, asked: 503 if asked == 1 else "no verdict" if asked == 2 else "[[C]]") as (
        url,
        asked,
    ):
        assert scores(url, GOOD, concurrency=1) == [0.5]
    assert len(asked) == 4


def test_what_can_be_wrong_with_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_judge.Judge, "_pause", lambda self, seconds: None)
    with judge(lambda *_: 401) as (url, asked), pytest.raises(UserError, match=r"refused with status 401: busy"):
        scores(url, GOOD, concurrency=1)
    assert len(asked) == 1
    with (
        judge(lambda *_: "hm") as (url, asked),
        pytest.raises(UserError, match=r"in 2 attempts; the last time: no \[\[A\]\]"),
    ):
        scores(url, GOOD, retries=1)
    with pytest.raises(UserError, match=r"in 1 attempts; the last time: ConnectError"):
        scores(url, GOOD, retries=0)  # nobody listens there any more
    with pytest.raises(ValidationError, match="must begin with http"):
        llm_judge.Options(base_url="file:///etc")
    with pytest.raises(ValidationError, match=r"must hold \{second\}"):
        llm_judge.Options(prompt="{first}")


ROWS = [TextRow(f"answer {number}", "short", f"question {number}") for number in range(5)]


def test_a_row_without_a_verdict_is_not_judged_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused (400) or unreadable; the others count alone."""
    monkeypatch.setattr(llm_judge.Judge, "_pause", lambda self, seconds: None)

    def answer(first: str, second: str, _: int) -> Any:
        both = first + second
        return (
            400 if "answer 1" in both else "well" if "answer 3" in both else "[[A]]" if second == "short" else "[[B]]"
        )

    with judge(answer) as (url, _):
        found = llm_judge.build(llm_judge.Options(base_url=url, retries=0))(ROWS)["llm_judge"]
    assert found.rows_E is not None and np.array_equal(found.rows_E, [1, math.nan, 1, math.nan, 1], equal_nan=True)
    assert found.value == 1.0
    assert found.remark.startswith(
        "llm_judge: 2 of 5 rows are not judged and left out, such as: it is refused with status 400"
    )
    low_and_high = interval(Statistics(found), Drawing(resamples=50))
    assert low_and_high is None or low_and_high == (1.0, 1.0)
    with (
        judge(lambda first, second, asked: "[[C]]" if asked > 6 else 400) as (url, _),
        pytest.raises(UserError, match="gave no verdict on 3 of 3 rows; on the first: it is refused with status 400"),
    ):
        scores(url, *ROWS, concurrency=1)
    with judge(lambda *_: 422) as (url, asked), pytest.raises(UserError, match="no verdict on 8 of 8 rows"):
        scores(url, *ROWS * 8, concurrency=1)
    assert len(asked) < 20  # nobody waits for the others


def test_it_asks_again_warmer_and_waits_as_long_as_it_is_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(llm_judge.Judge, "_pause", lambda self, seconds: slept.append(seconds))
    replies = {1: 429, 2: "hm", 3: "hm"}
    with judge(lambda first, second, asked: replies.get(asked, "[[C]]")) as (url, asked):
        assert scores(url, GOOD, concurrency=1) == [0.5]
    assert [one["temperature"] for one in asked] == [0.0, 0.0, 0.4, 0.8, 0.0]
    assert slept == [7.0]


def test_a_refusal_does_not_wait_for_those_that_wait_to_ask_again() -> None:
    busy = threading.Event()

    def answer(first: str, second: str, _: int) -> Any:
        if "answer 0" in first + second:
            busy.wait(10)
            return 401
        busy.set()
        return 429  # asked to wait for seven seconds

    started = time.monotonic()
    with judge(answer) as (url, asked), pytest.raises(UserError, match="refused with status 401"):
        scores(url, *ROWS[:2], concurrency=2)
    assert time.monotonic() - started < 5 and len(asked) == 2


def test_runs_are_compared_on_the_rows_that_all_have_a_verdict_on(tmp_path: Path) -> None:
    """Of four rows each run lacks the verdict on one; alone they are preferred on all and on one of three."""
    preferred, unjudged = set[str](), ""

    def answer(first: str, second: str, _: int) -> Any:
        if unjudged in (first, second):
            return 400
        return "[[A]]" if (second == "short") == bool(preferred & {first, second}) else "[[B]]"

    predictions = tmp_path / "answers.jsonl"
    lines = [{"prediction": f"answer {n}", "label": "short", "prompt": "?"} for n in range(4)]
    predictions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    with judge(answer) as (url, _):
        metric = {"name": "llm_judge", "base_url": url, "concurrency": 1}
        outs = [tmp_path / "a.json", tmp_path / "b.json", tmp_path / "c.json"]
        runs = [({"answer 0", "answer 1", "answer 3"}, "answer 2"), ({"answer 2"}, "answer 3"), (set(), "answer 0")]
        for out, run in zip(outs, runs, strict=True):
            preferred, unjudged = run
            evaluate(None, [], Asked(metrics=[metric], predictions=predictions, out=out))
    found = compare(outs[:2], Drawing(resamples=50), lambda line: None)
    assert found.remarks == ["llm_judge: 2 rows without a verdict in one of them are left out"]
    (compared,) = found.metrics
    assert [(number.value, number.rows) for number in compared.numbers] == [(1.0, 2), (0.0, 2)]
    (pair,) = compared.pairs
    assert (pair.difference, pair.increased, pair.decreased, pair.equal, pair.test) == (-1.0, 0, 2, 0, "mcnemar")
    assert compare(outs, Drawing(resamples=50), lambda line: None).metrics[0].numbers[0].rows == 1
    rows = json.loads(outs[2].read_text())["rows_file"]
    kept = (tmp_path / rows).read_text().replace('"scores": {"llm_judge"', '"scores": {"none"')
    (tmp_path / rows).write_text(kept)
    with pytest.raises(UserError, match="no metric in common") as caught:
        compare(outs, Drawing(resamples=50), lambda line: None)
    assert "4 rows without a verdict" in caught.value.remedy


def test_verdicts_are_kept_until_all_are_there(tmp_path: Path) -> None:
    path = tmp_path / "verdicts.partial"
    with judge(lambda first, second, asked: "[[A]]" if asked < 6 else 401) as (url, asked):
        options = llm_judge.Options(base_url=url, concurrency=1)
        with pytest.raises(UserError, match="401"):
            llm_judge.build(options, path)(ROWS)
        with path.open("a") as stream:
            stream.write('\n{"asked": "a torn li')
        before = len(asked)
        with pytest.raises(UserError, match="401"):
            llm_judge.build(options, path)(ROWS)
    questions = [one["messages"][0]["content"] for one in asked]
    assert len({*questions[:5]}) == 5 and not {*questions[:5]} & {*questions[before:]}  # five verdicts, not asked again


@pytest.mark.parametrize("torn", [False, True])
def test_an_evaluation_keeps_verdicts_beside_what_it_writes(torn: bool, tmp_path: Path) -> None:
    predictions, out = tmp_path / "answers.jsonl", tmp_path / "out.json"
    turns = [
        {"role": role, "content": f"{role} turn {n}"} for n, role in enumerate(("system", "user", "assistant", "user"))
    ]
    lines = [{"messages": turns, "prediction": f"answer {n}", "label": "short"} for n in range(5)]
    predictions.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    bad, judged = {"answer 1"}, list[tuple[str, str]]()

    def answer(first: str, second: str, number: int) -> Any:
        if torn and number == 7:
            return 401
        if bad & {first, second}:
            return 400
        judged.append((first, second))
        return "[[A]]" if second == "short" else "[[B]]"

    with judge(answer) as (url, asked):
        metric = {"name": "llm_judge", "base_url": url, "concurrency": 1}
        how = Asked(metrics=[metric], predictions=predictions, out=out, how=Drawing(resamples=50))
        if torn:
            with pytest.raises(UserError, match="401"):
                evaluate(None, [], how)
            assert verdicts_path(out).exists()
        found = evaluate(None, [], how)
    assert len(judged) == len({*judged}) == 8  # no verdict is paid for twice
    assert not verdicts_path(out).exists()
    assert found.remarks == [
        "llm_judge: 1 of 5 rows are not judged and left out, such as: it is refused with status 400: busy"
    ]
    assert [row.get("scores") for row in found.rows] == [{"llm_judge": 1.0}, None, *[{"llm_judge": 1.0}] * 3]
    question = asked[0]["messages"][0]["content"].split("[Question]\n")[1].split("\n\n[Answer A]")[0]
    assert question == "system: system turn 0\n\nuser: user turn 1\n\nassistant: assistant turn 2\n\nuser: user turn 3"
    compared = compare([out, out], Drawing(resamples=50), lambda line: None)
    assert compared.metrics[0].numbers[0].value == 1.0 and not compared.changed


def test_a_run_that_is_judged_goes_on_and_tells_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    with judge(lambda first, second, _: 400 if "answer 1" in first + second else "[[C]]") as (url, _):
        metrics = [llm_judge.Options(base_url=url)]
        answering = Answering(None, tiny_tokenizer(), (), GenerationSettings(), metrics)
        engine: Any = SimpleNamespace(lead=lambda values: values())
        assert answering.measure(engine, ROWS) == {"llm_judge": 0.5}
    assert "llm_judge: 1 of 5 rows are not judged and left out" in capsys.readouterr().err


def test_a_judge_that_can_not_see_the_question_is_told_of() -> None:
    with judge(lambda *_: "[[C]]") as (url, _):
        found = llm_judge.build(llm_judge.Options(base_url=url))([TextRow("a", "b"), GOOD])["llm_judge"]
    assert found.remark.startswith("llm_judge: 1 rows are judged without their question")


@pytest.mark.parametrize(("header", "seconds"), [("3", 3.0), ("-2", 0.0), ("soon", None), (None, None)])
def test_how_long_a_server_asks_to_wait(header: str | None, seconds: float | None) -> None:
    assert asked_wait(header) == seconds
    date = email.utils.format_datetime(datetime.now(UTC) + timedelta(seconds=90))
    assert asked_wait(date) == pytest.approx(90, abs=5)
