"""Records in blocks and in several processes: the same examples, reports and errors as in one go."""

from __future__ import annotations

import os
import pickle
import signal
from datetime import date
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from luthier.data import encoding, encoding_processes
from luthier.data.encoding import process_count
from luthier.data.preparing import prepare
from luthier.data.records import (
    Conversation,
    Document,
    Labelled,
    LabelledConversation,
    Message,
    Origin,
    Pair,
    ToolCall,
)
from luthier.data.rendering import Renderer
from luthier.foundation.errors import DataError
from tests.data.test_cache import ROWS, config, content

REFUSING = (
    "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('bad word') }}{% endif %}"
    "{{ m['role'] + ':' + m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
LONG = {"instruction": "long", "output": "word " * 200}
MUTE = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]}


@pytest.fixture
def started(monkeypatch) -> list[int]:
    """How many processes each preparation started; blocks are small, so that few rows are enough."""
    monkeypatch.setattr(encoding, "BLOCK_RECORDS", 7)
    counts: list[int] = []
    enter = encoding_processes.EncodingProcesses.__enter__

    def counted(self: Any) -> Any:
        found = enter(self)
        counts.append(len(self._processes))
        return found

    monkeypatch.setattr(encoding_processes.EncodingProcesses, "__enter__", counted)
    return counts


def in_processes(tokenizer: PreTrainedTokenizerFast, path: str, count: int, **data: Any) -> Any:
    return content(prepare(config(path, cache=False, preprocessing_num_workers=count, **data), tokenizer))


def refusing(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    import copy

    changed = copy.deepcopy(tokenizer)
    changed.chat_template = REFUSING
    return changed


def test_several_processes_give_what_one_gives(byte_tokenizer, write, started) -> None:
    bad = {"instruction": "a bad one", "output": "x"}
    rows = [*ROWS[:20], bad, LONG, *ROWS[20:], {"instruction": "lone"}, bad, LONG]
    path = str(write("a.json", rows))
    settings = {"template": "auto", "invalid_rows": "reject", "over_length": "drop", "cutoff_length": 60, "test": 8}
    tokenizer = refusing(byte_tokenizer)
    whole = in_processes(tokenizer, path, 1, **settings)
    assert started == [] and len({reason for _, reason, _ in whole[2]}) == 3
    assert in_processes(tokenizer, path, 2, **settings) == whole and started == [2]


def test_every_process_and_the_cache_know_the_day(byte_tokenizer, write, started, tmp_path, monkeypatch) -> None:
    """That a template which writes the date is told, in a macro too."""
    import copy

    monkeypatch.setenv("LUTHIER_DATA_CACHE", str(tmp_path / "cache"))
    tokenizer = copy.deepcopy(byte_tokenizer)
    today = "{% macro today() %}{{ strftime_now('%d %B %Y') }}{% endmacro %}{{ today() + ' ' }}"
    tokenizer.chat_template = today + REFUSING
    path = str(write("a.json", ROWS))

    def made(day: date, count: int, cache: bool = False) -> Any:
        settings = config(path, template="auto", cache=cache, preprocessing_num_workers=count)
        return content(prepare(settings, tokenizer, renderer=Renderer(tokenizer, day=day), say=lambda text: None))

    before, after = date(1999, 12, 31), date(2000, 1, 1)
    whole = made(before, 1)
    assert all(
        tokenizer.decode(example.sequences[0].input_ids).startswith("31 December 1999 ") for example in whole[0][0]
    )
    assert made(before, 2) == whole and started == [2]
    assert made(before, 1, cache=True) == made(before, 1, cache=True) == whole
    assert made(after, 1, cache=True) == made(after, 1) != whole


@pytest.mark.parametrize(
    ("rows", "settings", "told"),
    [
        ([*ROWS[:20], LONG, *ROWS[20:], LONG], {"over_length": "error", "cutoff_length": 100}, "2 rows are longer"),
        (
            [
                *ROWS[:20],
                {"instruction": "a bad one", "output": "x"},
                *ROWS[20:],
                {"instruction": "bad", "output": "x"},
            ],
            {"template": "auto"},
            "2 rows can't be used",
        ),
        ([MUTE] * 20, {}, "every label of the train data is masked: none of its 20 rows"),
    ],
)
def test_errors_tell_of_all_rows(rows, settings, told, byte_tokenizer, write, started) -> None:
    path, tokenizer = str(write("a.json", rows)), refusing(byte_tokenizer)
    messages = []
    for count in (1, 2):
        with pytest.raises(DataError, match=told) as caught:
            in_processes(tokenizer, path, count, **settings)
        messages.append(str(caught.value))
    assert messages[0] == messages[1] and started == [2]


def test_a_process_that_is_lost_is_made_up_for(byte_tokenizer, write, started, monkeypatch, capsys) -> None:
    path = str(write("a.json", ROWS))
    whole = in_processes(byte_tokenizer, path, 1)
    ask = encoding_processes.EncodingProcesses._ask

    def killing(self: Any, block: Any) -> Any:
        os.kill(self._processes[0].pid, signal.SIGKILL)
        return ask(self, block)

    monkeypatch.setattr(encoding_processes.EncodingProcesses, "_ask", killing)
    assert in_processes(byte_tokenizer, path, 2) == whole
    assert capsys.readouterr().err.count("was ended from outside") == 1


def test_a_tokenizer_that_cannot_be_sent_is_used_here(byte_tokenizer, write, started, capsys) -> None:
    path = str(write("a.json", ROWS))
    whole = in_processes(byte_tokenizer, path, 1)
    tokenizer = refusing(byte_tokenizer)
    tokenizer.not_to_be_pickled = lambda: None
    assert in_processes(tokenizer, path, 2)[0] == whole[0] and started == [2]
    assert "one process tokenizes" in capsys.readouterr().err


def test_how_many_processes_there_are(monkeypatch) -> None:
    monkeypatch.setattr(encoding, "available_cores", lambda: 8)
    assert [process_count(size, None) for size in (10, 3_000_000, 3_000_001)] == [1, 1, 8]
    assert [process_count(size, 3) for size in (10, 3_000_001)] == [3, 3]


def test_records_travel_as_they_are(byte_tokenizer) -> None:
    origin = Origin("a", 3)
    call = ToolCall("f", {"x": [1]}, "id")
    turn = Message("assistant", "é", 0.5, (call,), "n", "t")
    tools = ({"type": "function"},)
    sent: list[Any] = [
        Conversation((turn,), origin, ("note",), tools),
        Pair((turn,), (turn,), (turn, turn), origin, (), tools),
        LabelledConversation((turn,), True, origin),
        Labelled("t", 1.5, origin, "u"),
        Document("d", origin),
    ]
    assert pickle.loads(pickle.dumps(sent)) == sent
