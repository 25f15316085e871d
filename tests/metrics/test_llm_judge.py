"""The judge, asked over a real socket."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from pydantic import ValidationError

from luthier.foundation.errors import UserError
from luthier.metrics import llm_judge
from luthier.metrics._text import TextRow


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
            message = {"choices": [{"message": {"role": "assistant", "content": reply}}]}
            data = json.dumps(message).encode() if status == 200 else reply.encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
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
    monkeypatch.setattr(llm_judge.time, "sleep", lambda seconds: None)
    with judge(lambda first, second, asked: 503 if asked == 1 else "no verdict" if asked == 2 else "[[C]]") as (
        url,
        asked,
    ):
        assert scores(url, GOOD, concurrency=1) == [0.5]
    assert len(asked) == 4


def test_what_can_be_wrong_with_a_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm_judge.time, "sleep", lambda seconds: None)
    with judge(lambda *_: 401) as (url, asked), pytest.raises(UserError, match=r"refused with status 401: busy"):
        scores(url, GOOD, concurrency=1)
    assert len(asked) == 1
    with judge(lambda *_: "hm") as (url, asked), pytest.raises(UserError, match=r"after 2 attempts: no \[\[A\]\]"):
        scores(url, GOOD, retries=1)
    with pytest.raises(UserError, match=r"gave no verdict after 1 attempts: ConnectError"):
        scores(url, GOOD, retries=0)  # nobody listens there any more
    with pytest.raises(ValidationError, match="must begin with http"):
        llm_judge.Options(base_url="file:///etc")
    with pytest.raises(ValidationError, match=r"must hold \{second\}"):
        llm_judge.Options(prompt="{first}")
