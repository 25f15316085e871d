"""The engine `openai` against a server on a real socket: what it sends, how it waits, and what it does with refusals."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from luthier.cli import main
from luthier.commands.predict import predict
from luthier.config.generation_section import GenerationSettings
from luthier.foundation.errors import ConfigError, UserError
from tests.evaluation.stand_in_server import refuses, says, stand_in

KEY = "sk-a-key-that-nobody-may-see"


def engine(url: str, **options: Any) -> dict[str, Any]:
    return {"name": "openai", "base_url": url, "first_wait_seconds": 0.01, **options}


def lines_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_rows_come_back_in_order_though_answers_do_not(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def reply(body: dict[str, Any], before: int) -> Any:
        question = body["messages"][-1]["content"]
        time.sleep(0.02 if len(question) % 2 else 0.0)
        return says(question.upper(), "length" if len(question) % 3 == 0 else "stop")

    out = tmp_path / "out.jsonl"
    with stand_in(reply) as server:
        status = main([
            "predict", "some-model", "--data", str(rows), "--out", str(out), "--max-new-tokens", "9", "--temperature", "0.5", "--top-p", "0.9", "--stop", ";", "--json",
            "--engine", f"{{name: openai, base_url: '{server.url}', parallel: 4}}",
        ])  # fmt: skip
    assert status == 0
    given, found = lines_of(rows), lines_of(out)
    assert [line["prediction"] for line in found] == [row["instruction"].upper() for row in given]
    assert {line["finish_reason"] for line in found} == {"stop", "length"}
    assert all((line["tokens"], line["prompt_tokens"]) == (3, 7) for line in found)
    assert 1 < server.most <= 4
    path, body, authorization = server.asked[0]
    assert path == "/v1/chat/completions"
    assert authorization == f"Bearer {KEY}"
    assert {key: body[key] for key in ("model", "max_tokens", "temperature", "top_p", "stop")} == {
        "model": "some-model", "max_tokens": 9, "temperature": 0.5, "top_p": 0.9, "stop": [";"],
    }  # fmt: skip
    assert len({body["seed"] for _, body, _ in server.asked}) == 24
    captured = capsys.readouterr()
    assert KEY not in captured.out + captured.err + out.read_text()


def test_greedy_plain_text_and_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"text": "once upon"}\n')
    with stand_in(lambda body, before: says(" a time")) as server:
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url))
    ((path, body, authorization),) = server.asked
    assert (path, authorization) == ("/v1/completions", None)
    assert body["prompt"] == "once upon" and body["temperature"] == 0 and "seed" not in body
    assert lines_of(tmp_path / "out.jsonl")[0]["prediction"] == " a time"


def call(function: str, arguments: str, identity: str) -> dict[str, Any]:
    return {"id": identity, "type": "function", "function": {"name": function, "arguments": arguments}}


@pytest.mark.parametrize(
    ("turns", "expected"),
    [
        (  # ShareGPT's have no ids
            {"conversations": [
                {"from": "human", "value": "A4 和 E2?"},
                {"from": "function_call", "value": '[{"name": "pitch", "arguments": {"note": "A4", "律": 12}}, {"name": "pitch", "arguments": {}}]'},
                {"from": "observation", "value": "440"},
                {"from": "observation", "value": "82.4"},
                {"from": "gpt", "value": "440 and 82.4."},
                {"from": "human", "value": "And E4?"},
                {"from": "function_call", "value": '{"name": "pitch", "arguments": {"note": "E4"}}'},
                {"from": "observation", "value": "330"},
                {"from": "gpt", "value": "330."},
            ]},
            [
                {"role": "user", "content": "A4 和 E2?"},
                {"role": "assistant", "content": "", "tool_calls": [call("pitch", '{"note": "A4", "律": 12}', "call_0"), call("pitch", "{}", "call_1")]},
                {"role": "tool", "content": "440", "tool_call_id": "call_0"},
                {"role": "tool", "content": "82.4", "tool_call_id": "call_1"},
                {"role": "assistant", "content": "440 and 82.4."},
                {"role": "user", "content": "And E4?"},
                {"role": "assistant", "content": "", "tool_calls": [call("pitch", '{"note": "E4"}', "call_2")]},
                {"role": "tool", "content": "330", "tool_call_id": "call_2"},
            ],
        ),
        (  # ids that are there stay, others are none of them; a function's name tells which call is answered
            {"messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "well", "tool_calls": [call("f", '{"a": 1}', "call_0"), {"function": {"name": "g", "arguments": {}}}, {"function": {"name": "h", "arguments": {}}}]},
                {"role": "tool", "content": "of h", "name": "h"},
                {"role": "tool", "content": "of f", "tool_call_id": "call_0"},
                {"role": "tool", "content": "of g"},
                {"role": "assistant", "content": "so"},
            ]},
            [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "well", "tool_calls": [call("f", '{"a": 1}', "call_0"), call("g", "{}", "call_1"), call("h", "{}", "call_2")]},
                {"role": "tool", "content": "of h", "name": "h", "tool_call_id": "call_2"},
                {"role": "tool", "content": "of f", "tool_call_id": "call_0"},
                {"role": "tool", "content": "of g", "tool_call_id": "call_1"},
            ],
        ),
    ],
    ids=["without ids", "with some"],
)  # fmt: skip
def test_tool_calls_are_written_as_the_protocol_has_them(
    turns: dict[str, Any], expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(turns))
    with stand_in(lambda body, before: says("yes")) as server:
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url))
    assert server.asked[0][1]["messages"] == expected


def test_a_busy_server_is_asked_again(rows: Path, tmp_path: Path) -> None:
    def reply(body: dict[str, Any], before: int) -> Any:
        if before == 0:
            return refuses(429, "slow down", **{"Retry-After": "0.05"})
        return refuses(503, "starting") if before == 1 else says("yes")

    started = time.monotonic()
    with stand_in(reply) as server:
        result = predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url, parallel=24))
    assert result.finish_reasons == {"stop": 24}
    assert len(server.asked) == 3 * 24
    assert time.monotonic() - started > 0.05  # as long as it was asked to wait


def test_what_a_server_refuses_for_a_row_is_that_rows_reason(rows: Path, tmp_path: Path) -> None:
    long = lines_of(rows)[3]["instruction"]

    def reply(body: dict[str, Any], before: int) -> Any:
        return refuses(400, "context length exceeded") if body["messages"][-1]["content"] == long else says("yes")

    with stand_in(reply) as server:
        result = predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url))
    assert result.finish_reasons == {"stop": 23, "error": 1}
    line = lines_of(tmp_path / "out.jsonl")[3]
    assert line["prediction"] == "" and line["finish_reason"] == "error"
    assert line["reason"] == "the server refuses it (400): context length exceeded"


def test_a_server_that_goes_away_stops_the_run_which_then_goes_on(rows: Path, tmp_path: Path) -> None:
    out, healthy = tmp_path / "out.jsonl", False

    def reply(body: dict[str, Any], before: int) -> Any:
        if healthy or len(server.asked) <= 10:
            return says(body["messages"][-1]["content"])
        return refuses(503, "gone")

    with stand_in(reply) as server:
        how = engine(server.url, parallel=1, retries=1)
        with pytest.raises(UserError, match="gave no answer in 2 attempts; the last time: 503: gone"):
            predict("m", [str(rows)], out, engine=how)
        healthy = True
        result = predict("m", [str(rows)], out, engine=how)
    assert result.resumed == 10
    assert [line["prediction"] for line in lines_of(out)] == [row["instruction"] for row in lines_of(rows)]


def test_a_row_on_which_the_server_fails_again_and_again_does_not_stop_the_run(rows: Path, tmp_path: Path) -> None:
    poison = lines_of(rows)[5]["instruction"]

    def reply(body: dict[str, Any], before: int) -> Any:
        return refuses(500, "out of memory") if body["messages"][-1]["content"] == poison else says("yes")

    with stand_in(reply) as server:
        result = predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url, retries=2))
    assert result.finish_reasons == {"stop": 23, "error": 1}
    assert lines_of(tmp_path / "out.jsonl")[5]["reason"] == (
        "the server gives no answer in 3 attempts; the last time: 500: out of memory"
    )
    assert sum(body["messages"][-1]["content"] == poison for _, body, _ in server.asked) == 3


@pytest.mark.parametrize("status", [429, 529])
def test_a_limit_that_only_short_questions_pass_stops_the_run_which_then_goes_on(
    status: int, rows: Path, tmp_path: Path
) -> None:
    """A limit of tokens a minute lets one token through: that says nothing of the rows, which are not lost to it."""
    out, limited = tmp_path / "out.jsonl", True

    def reply(body: dict[str, Any], before: int) -> Any:
        short = body["messages"][-1]["content"] == "1" or len(server.asked) <= 10
        return says("yes") if short or not limited else refuses(status, "tokens per minute")

    with stand_in(reply) as server:
        how = engine(server.url, parallel=1, retries=1)
        with pytest.raises(UserError, match=f"the last time: {status}: tokens per minute") as caught:
            predict("m", [str(rows)], out, engine=how)
        assert "(parallel)" in caught.value.remedy and "goes on" in caught.value.remedy and not out.exists()
        limited = False
        result = predict("m", [str(rows)], out, engine=how)
    assert result.resumed == 10 and result.finish_reasons == {"stop": 24}


def test_a_server_that_refuses_all_rows_alike_is_refused_in_its_words(rows: Path, tmp_path: Path) -> None:
    with (
        stand_in(lambda body, before: refuses(400, "temperature is not supported")) as server,
        pytest.raises(UserError) as caught,
    ):
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url, parallel=1))
    assert caught.value.problem == (
        "the first 8 rows get no answer, all for the same reason: the server refuses it (400): temperature is not supported."
    )
    assert len(server.asked) < 24 and not (tmp_path / "out.jsonl").exists()
    one = tmp_path / "one.jsonl"
    one.write_text(rows.read_text().splitlines()[0])
    with (
        stand_in(lambda body, before: refuses(400, "no")) as server,
        pytest.raises(UserError, match="the first 1 rows"),
    ):
        predict("m", [str(one)], tmp_path / "one.out.jsonl", engine=engine(server.url))
    with stand_in(lambda body, before: refuses(400, f"{len(server.asked)} tokens are too many")) as server:
        result = predict("m", [str(rows)], tmp_path / "each.jsonl", engine=engine(server.url, parallel=1))
    assert result.finish_reasons == {"error": 24}  # each for a reason of its own


def test_a_resume_asks_refused_rows_again_and_last(rows: Path, tmp_path: Path) -> None:
    out, asked = tmp_path / "out.jsonl", [row["instruction"] for row in lines_of(rows)]
    again = False

    def reply(body: dict[str, Any], before: int) -> Any:
        if not again and body["messages"][-1]["content"] in asked[1:10]:
            return refuses(422, "not today")
        return says("yes") if again or len(server.asked) <= 12 else refuses(401, "the key is used up")

    with stand_in(reply) as server:
        with pytest.raises(UserError, match="refuses access"):
            predict("m", [str(rows)], out, engine=engine(server.url, parallel=1))
        again, before = True, len(server.asked)
        result = predict("m", [str(rows)], out, engine=engine(server.url, parallel=1))
    assert result.resumed == 3 and result.finish_reasons == {"stop": 24}
    later = [body["messages"][-1]["content"] for _, body, _ in server.asked[before:]]
    assert later == [*asked[12:], *asked[1:10]]


@pytest.mark.parametrize(
    ("choice", "prediction", "reason"),
    [
        ({"message": {"content": "half \ud83d of it"}}, "half \ufffd of it", None),
        ({"message": {"content": "whole \ud83d\ude00"}}, "whole \U0001f600", None),
        ({"message": {"content": None}}, "", None),
        ({"message": {"tool_calls": [{"function": {"name": "f"}}, None]}}, '[{"name": "f"}]', None),
        ({"message": None, "finish_reason": "content_filter"}, "", "the server's answer holds no text: {"),
        ({"text": "no message"}, "", "the server's answer holds no text: {"),
        ({"message": {"content": ["parts"]}}, "", "the server's answer holds no text: {"),
    ],
)
def test_whatever_a_server_answers_with_is_written(
    choice: dict[str, Any], prediction: str, reason: str | None, rows: Path, tmp_path: Path
) -> None:
    def reply(body: dict[str, Any], before: int) -> Any:
        if body["messages"][-1]["content"] == lines_of(rows)[3]["instruction"]:
            return 200, {"choices": [choice], "usage": "none"}, {}
        return says("yes")

    with stand_in(reply) as server:
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url))
    line = lines_of(tmp_path / "out.jsonl")[3]
    assert line["prediction"] == prediction
    assert line.get("reason", "").startswith(reason or "") and ("reason" in line) is bool(reason)


def test_rows_without_an_answer_are_remarked_on(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused = [row["instruction"] for row in lines_of(rows)[:2]]

    def reply(body: dict[str, Any], before: int) -> Any:
        return refuses(400, "too long") if body["messages"][-1]["content"] in refused else says("yes")

    with stand_in(reply) as server:
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url))
    with (tmp_path / "out.jsonl").open("a") as stream:  # another program may have written the answers
        stream.write('{"prediction": "half \\ud83d of it", "label": "half"}\n')
    options = ["--metric", "exact_match", "--resamples", "0", "--json", "--out", str(tmp_path / "found.json")]
    assert main(["evaluate", "--predictions", str(tmp_path / "out.jsonl"), *options]) == 0
    captured = capsys.readouterr()
    (remark,) = json.loads(captured.out.splitlines()[-1])["remarks"]
    assert remark == (
        "2 of 25 rows have no answer and count as empty: the engine could not answer them, such as: the server refuses it "
        "(400): too long"
    )
    assert f"- {remark}" in captured.err


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        (refuses(401, "bad key"), "refuses access (401); the variable OPENAI_API_KEY holds a key"),
        (refuses(404, "no such model"), "answers 404: no such model"),
        ((200, {"hello": 1}, {}), "no completion"),
    ],
)
def test_refusals_that_no_row_can_help(
    reply: Any, told: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with stand_in(lambda body, before: reply) as server, pytest.raises(UserError) as caught:
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine=engine(server.url))
    assert told in caught.value.problem
    assert KEY not in str(caught.value)


def test_settings_that_the_protocol_has_no_word_for(rows: Path, tmp_path: Path) -> None:
    drawn = GenerationSettings(do_sample=True, top_k=5, min_p=0.1, max_new_tokens=4)
    with stand_in(lambda body, before: says("yes")) as server:
        with pytest.raises(UserError, match="can't ask for top_k, min_p"):
            predict("m", [str(rows)], tmp_path / "out.jsonl", drawn, engine=engine(server.url))
        with pytest.raises(UserError, match="can't ask for num_beams"):
            predict("m", [str(rows)], tmp_path / "b.jsonl", GenerationSettings(num_beams=2), engine=engine(server.url))
        assert not server.asked
        predict("m", [str(rows)], tmp_path / "out.jsonl", drawn, engine=engine(server.url, extended=True))
        assert server.asked[0][1]["top_k"] == 5 and server.asked[0][1]["min_p"] == 0.1


def test_options_are_checked(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"base_url: must begin with http"):
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine={"name": "openai", "base_url": "example"})
    with pytest.raises(ConfigError, match="paralel"):
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine={"name": "openai", "paralel": 2})
    with pytest.raises(UserError, match="Did you mean"):
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine="openia")
    with pytest.raises(UserError, match="a template would have no effect"):
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine="openai", template="chatml")
    with pytest.raises(UserError, match="--trust-remote-code would have no effect"):
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine="openai", trust_remote_code=True)
    with pytest.raises(UserError, match="lack its name"):
        predict("m", [str(rows)], tmp_path / "out.jsonl", engine={"base_url": "http://localhost/v1"})


def test_answers_of_a_server_are_measured(rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing of the model is looked for on this machine, and it has no loss."""
    first = lines_of(rows)[0]
    with stand_in(lambda body, before: says(first["output"])) as server:
        how = f"{{name: openai, base_url: '{server.url}'}}"
        arguments = ["evaluate", "gpt-of-nobody", "--data", str(rows), "--metric", "exact_match", "--engine", how]
        assert main([*arguments, "--out", str(tmp_path / "out.json"), "--resamples", "0", "--json"]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    right = sum(row["output"] == first["output"] for row in lines_of(rows))
    assert list(found["metrics"]) == ["exact_match"]
    assert found["metrics"]["exact_match"]["value"] == pytest.approx(right / 24)
    assert found["remarks"] == ["no loss is taken: only the engine transformers gives it"]
