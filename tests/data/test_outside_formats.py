"""`format: my_package.my_format`: the page's example works from the command line, and every fault is named."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.config.data_section import DataConfig, DataEntry
from luthier.data.entries import load_entry
from luthier.data.preparing import load_records
from luthier.foundation.errors import DataError, UserError

PAGE = Path(__file__).resolve().parents[2] / "docs" / "data.md"
EXAMPLE = re.search(r"### A format of your own.*?```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1]
ROWS = '{"qa": "What is 2 + 2? | 4"}\n{"qa": "no bar"}\n'


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Writes a module into the current folder, and gives its dotted name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "rows.jsonl").write_text(ROWS)

    def put(source: str) -> str:
        package = "outside_" + re.sub(r"\W", "_", request.node.name)
        (tmp_path / package).mkdir()
        (tmp_path / package / "my_format.py").write_text(source.replace("my_package", package))
        return f"{package}.my_format"

    return put


def test_the_pages_example_from_the_command_line(tmp_path: Path, tiny_llama: Path) -> None:
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "my_format.py").write_text(EXAMPLE)
    (tmp_path / "rows.jsonl").write_text(ROWS)
    entry = "data.train=[{path: rows.jsonl, format: my_package.my_format}]"
    command = [str(Path(sys.executable).parent / "luthier"), "data", "show", f"model={tiny_llama}", entry]
    shown = subprocess.run(
        [*command, "data.invalid_rows=reject", "--json"], cwd=tmp_path, capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    report = json.loads(shown.stdout.splitlines()[-1])
    (source,) = report["sources"]
    assert (source["format"], source["rows_read"], source["rows_kept"]) == ("my_package.my_format", 2, 1)
    assert source["rejected_by_reason"] == {"the field 'qa' has no bar between question and answer.": 1}
    assert report["examples"][0]["targets"] > 0


def test_columns_and_the_system_prompt_reach_it(module, tmp_path: Path) -> None:
    name = module(EXAMPLE)
    (tmp_path / "rows.jsonl").write_text('{"both": "q | a"}\n')
    entry = DataEntry(path="rows.jsonl", format=name, columns={"qa": "both"}, system="s")
    (record,) = load_entry(entry, "train", 0, 0, None).records
    assert [(turn.role, turn.content) for turn in record.messages] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
    ]
    with pytest.raises(DataError, match=r"knows no 'question'; it knows: qa"):
        load_entry(DataEntry(path="rows.jsonl", format=name, columns={"question": "both"}), "train", 0, 0, None)


FAULTS = {
    "no Options": ("class Options", "class Settings", r"could not be imported: NameError: name 'Options'"),
    "no build": ("def build(options: Options)", "def make(options: Options)", r"is no data format: it lacks build"),
    "other Options": ("class Options(FormatOptions)", "class Options", r"Options does not inherit from luthier\.data\.columns"),
    "no parts": ('PARTS: ClassVar = {"qa": "qa"}', "PARTS: ClassVar = {}", r"Options\.PARTS must name the columns"),
    "no name": ('    name: Literal["my_package.my_format"] = "my_package.my_format"\n', "", r"Options lacks name: Literal\["),
    "no record": ("RECORD = Conversation", "KIND = Conversation", r"RECORD is missing; it must be one of .*Conversation, Document"),
    "another record": ("RECORD = Conversation", "RECORD = str", r"RECORD is <class 'str'>; it must be one of"),
    "a record not announced": ("return conversation(", "return str(", r"made a str of rows\.jsonl, row 1, and its RECORD is Conversation|broke down"),
    "a fault in a row": ("if not bar:", "if not baar:", r"my_format broke down at rows\.jsonl, row 1: NameError: name 'baar'"),
    "a fault in the file": ("RECORD =", "RECORD ==", r"could not be imported: NameError"),
    "a missing package": ("from typing", "import nowhere\nfrom typing", r"could not be imported: ModuleNotFoundError: No module named 'nowhere'"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_with_a_module(fault: str, module) -> None:
    before, after, pattern = FAULTS[fault]
    assert before in EXAMPLE
    name = module(EXAMPLE.replace(before, after))
    with pytest.raises(UserError, match=pattern) as caught:
        load_records(DataConfig(train=[{"path": "rows.jsonl", "format": name}], invalid_rows="reject"), 0)
    assert name.replace("my_package", "") in str(caught.value) and caught.value.remedy


def test_a_module_that_is_not_there(module) -> None:
    module(EXAMPLE)
    with pytest.raises(
        UserError, match=r"'nowhere\.at_all' could not be imported.*\n.*installed or stands in the current folder"
    ):
        load_records(DataConfig(train=[{"path": "rows.jsonl", "format": "nowhere.at_all"}]), 0)
