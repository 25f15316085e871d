"""Over a hundred inputs that can't be used: each a clear error or a counted rejection, never a traceback, a hang, a
growth of memory without bound, or a row that disappears."""

from __future__ import annotations

import copy
import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.config.data_section import DataConfig
from luthier.config.plugins import FORMATS
from luthier.config.schema import RunConfig
from luthier.config.sections import MethodOptions, PluginOptions
from luthier.config.training_section import TrainingConfig
from luthier.data import template_limits
from luthier.data.preparing import LoadedRecords, load_records, prepare
from luthier.data.rejecting import write_rejected
from luthier.data.rendering import Renderer
from luthier.foundation.errors import DataError
from tests.data.malformed_files import FILES
from tests.data.malformed_rows import GOOD, ROWS
from tests.data.malformed_templates import CHATML, SLOW, TEMPLATES

SECONDS = 5
GROWTH_BYTES = 400 * 1024 * 1024
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class TooSlowError(BaseException):
    """No code may take it for an error of its own."""


@contextmanager
def limits() -> Iterator[None]:
    """At most SECONDS, and (where Linux counts it) at most GROWTH_BYTES more memory than before."""

    def late(number: int, frame: object) -> None:
        raise TooSlowError(f"took over {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    if CLEAR.exists():
        CLEAR.write_text("5")  # the peak counts from here
    start = _memory("VmRSS")
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    grown = _memory("VmHWM") - start
    assert grown < GROWTH_BYTES, f"{grown:,} bytes more"


def _memory(name: str) -> int:
    if not STATUS.exists():
        return 0
    found = re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) * 1024


def load(path: Path, invalid_rows: str, **settings: object) -> LoadedRecords:
    with limits():
        return load_records(DataConfig(train=[{"path": str(path), **settings}], invalid_rows=invalid_rows), 0)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    write, pattern = FILES[name]
    path = write(tmp_path)
    for invalid_rows in ("error", "reject"):
        with pytest.raises(DataError) as caught:
            load(path, invalid_rows)
        error = caught.value
        assert re.search(pattern, str(error)), str(error)
        assert error.remedy and str(path.parent if path.name.startswith("*") else tmp_path) in error.problem
        assert len(str(error)) < 3000 and "Traceback" not in str(error)


@pytest.mark.parametrize("name", ROWS)
def test_a_row_that_cannot_be_used(name: str, tmp_path: Path) -> None:
    form, row, pattern = ROWS[name]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(values) + "\n" for values in (GOOD[form], row, GOOD[form])))
    with pytest.raises(DataError) as caught:
        load(path, "error", format=form)
    assert re.search(rf"1 row can't be used:\n  - {path}, row 2: .*{pattern}", str(caught.value)), str(caught.value)
    assert len(str(caught.value)) < 3000
    loaded = load(path, "reject", format=form)
    (report,) = loaded.report.sources
    assert (report.read, report.kept, report.rejected.total()) == (3, 2, 1)
    assert [str(item.origin) for item in loaded.rejected] == [f"{path}, row 2"]
    assert re.search(pattern, loaded.rejected[0].reason)
    assert len(loaded.splits["train"]) == 2


WRONG = (None, 5, 10**400, float("nan"), True, [], [None], [5], [[]], {}, {"a": None}, "\ud800", [{}], [{"role": 5}])


@pytest.mark.parametrize("form", FORMATS.names())
def test_a_wrong_type_in_every_field(form: str, tmp_path: Path) -> None:
    """No row disappears, and a bad value never brings down more than its own row."""
    parts = FORMATS.load(form).Options.PARTS.values()
    bad = [{**GOOD[form], column: value} for column in parts for value in WRONG]
    bad += [{key: value for key, value in GOOD[form].items() if key != column} for column in GOOD[form]]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD[form], *bad)))
    loaded = load(path, "reject", format=form)
    (report,) = loaded.report.sources
    assert report.read == len(bad) + 1 == report.kept + report.rejected.total()
    assert report.kept < len(bad) / 2 and all(len(reason) < 600 for reason in report.rejected)


def test_formats_mixed_in_one_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in GOOD.values()))
    with pytest.raises(DataError, match=r"a\.jsonl matches several formats \(.*\)\.\nSay which one is meant"):
        load(path, "error")
    loaded = load(path, "reject", format="alpaca")
    report = loaded.report.sources[0]
    assert report.read == len(GOOD) == report.kept + report.rejected.total() and report.kept == 3


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_cannot_be_used(name: str, byte_tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    source, pattern = TEMPLATES[name]
    tokenizer = copy.copy(byte_tokenizer)
    # a busy machine must not end those that another limit is to end
    monkeypatch.setattr(template_limits, "SECONDS", 0.3 if SLOW in pattern else 0.9 * SECONDS)
    monkeypatch.setattr(template_limits, "CHARACTERS", 16 * 1024 * 1024)
    tokenizer.chat_template = source + CHATML
    with limits(), pytest.raises(DataError) as caught:
        Renderer(tokenizer)
    assert re.search(pattern, str(caught.value)), str(caught.value)
    assert "chat template" in caught.value.problem and caught.value.remedy and len(str(caught.value)) < 1500


def config_of(data: DataConfig) -> RunConfig:
    return RunConfig(
        model="tiny",
        data=data,
        stage=PluginOptions(name="sft"),
        method=MethodOptions(name="full"),
        training=TrainingConfig(seed=0),
        output_dir="runs/x",
    )


BEHIND = {
    "tools that the template has no place for": (
        {"tools": [{"name": "f"}]},
        "chatml",
        r"has tools, which the chat template",
    ),
    "a system prompt that the family lacks": ({"system": "s"}, "gemma", r"refuses this conversation"),
}


@pytest.mark.parametrize("name", BEHIND)
def test_a_row_that_the_template_refuses(name: str, byte_tokenizer, tmp_path: Path) -> None:
    fields, template, pattern = BEHIND[name]
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({**GOOD["alpaca"], **extra}) + "\n" for extra in ({}, fields, {})))
    for invalid_rows in ("error", "reject"):
        config = config_of(DataConfig(train=str(path), template=template, invalid_rows=invalid_rows))
        with limits():
            if invalid_rows == "error":
                with pytest.raises(DataError, match=rf"(?s)a\.jsonl, row 2: .*({pattern})"):
                    prepare(config, byte_tokenizer)
            else:
                prepared = prepare(config, byte_tokenizer)
                assert prepared.report.splits["train"].unrendered == 1 and len(prepared.train) == 2
                assert re.search(pattern, prepared.rejected[0].reason)
                write_rejected(tmp_path / "rejected.jsonl", prepared.rejected)


def test_a_template_that_breaks_down_on_one_row(
    byte_tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would cost ten seconds for every such row, so the run stops at the first."""
    tokenizer = copy.copy(byte_tokenizer)
    trap = "{% if messages[0].content == 'boom' %}{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    tokenizer.chat_template = trap + CHATML
    monkeypatch.setattr(template_limits, "SECONDS", 0.3)
    path = tmp_path / "a.jsonl"
    path.write_text('{"instruction": "q", "output": "a"}\n{"instruction": "boom", "output": "a"}\n')
    config = config_of(DataConfig(train=str(path), invalid_rows="reject"))
    with limits(), pytest.raises(DataError, match=r"the chat template takes more than 0\.3 seconds"):
        prepare(config, tokenizer)
