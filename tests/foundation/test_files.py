"""Folders and files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from luthier.foundation import files
from luthier.foundation.errors import UserError
from luthier.foundation.files import (
    human_bytes,
    is_disk_full,
    need_file,
    need_place,
    whole_folder,
    write_json,
    write_text,
)

FILL_AND_WAIT = """
import sys, time
from pathlib import Path
from luthier.foundation.files import whole_folder
with whole_folder(Path(sys.argv[1])) as building:
    (building / "part").write_text("half")
    print(building, flush=True)
    sys.stdin.readline()
    (building / "rest").write_text("whole")
"""


def start_writer(path: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that has begun to fill `path`, and the hidden folder it fills; a line on its input lets it finish."""
    process = subprocess.Popen(
        [sys.executable, "-c", FILL_AND_WAIT, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def end(process: subprocess.Popen[str], *, kill: bool) -> int:
    if kill:
        process.send_signal(signal.SIGKILL)
    process.communicate("\n" if not kill else None, timeout=30)
    return process.returncode


def test_a_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "target"
    with whole_folder(target) as building:
        (building / "inner").mkdir()
        (building / "inner" / "file").write_text("text")
        (building / "link").symlink_to("nowhere")
        assert not target.exists()
        assert building.parent == target.parent
    assert (target / "inner" / "file").read_text() == "text"
    assert os.listdir(target.parent) == ["target"]


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), whole_folder(tmp_path / "target") as building:
        (building / "file").write_text("text")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


def test_a_killed_writer_leaves_no_target_and_is_cleaned_up_after(tmp_path: Path) -> None:
    target = tmp_path / "tar[g]et"  # brackets mean something to glob
    process, building = start_writer(target)
    assert end(process, kill=True) == -signal.SIGKILL
    assert not target.exists()
    assert (building / "part").exists()
    with whole_folder(target) as mine:
        assert not building.exists()
        (mine / "file").write_text("text")
    assert os.listdir(tmp_path) == ["tar[g]et"]


def test_a_living_writer_is_left_alone_and_the_first_to_finish_wins(tmp_path: Path) -> None:
    target = tmp_path / "target"
    process, building = start_writer(target)
    with whole_folder(target) as mine:
        assert mine != building
        assert building.exists()
        (mine / "file").write_text("mine")
    assert end(process, kill=False) == 1  # it finds the target taken
    assert os.listdir(target) == ["file"]
    assert os.listdir(tmp_path) == ["target"]


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    with whole_folder(target) as building:  # an empty one is as good as none
        (building / "file").write_text("first")
    with pytest.raises(OSError, match="not empty"), whole_folder(target) as building:
        (building / "file").write_text("second")
    assert (target / "file").read_text() == "first"
    assert os.listdir(tmp_path) == ["target"]


def test_a_text_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_text(path, "old\n")
    assert path.stat().st_mode & 0o400

    def fail(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left") as caught:
        write_text(path, "new\n")
    assert is_disk_full(caught.value)
    assert path.read_text() == "old\n"
    assert os.listdir(path.parent) == ["file"]


def test_json_refuses_what_is_no_json(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "file", {"loss": float("nan")})
    write_json(tmp_path / "file", {"琴": 1})
    assert (tmp_path / "file").read_text(encoding="utf-8") == '{\n  "琴": 1\n}\n'


def test_a_disk_full_behind_another_error_is_seen() -> None:
    outer = RuntimeError("could not save")
    outer.__cause__ = OSError(errno.EDQUOT, "quota")
    assert is_disk_full(outer)
    assert is_disk_full(RuntimeError("I/O error: No space left on device (os error 28)"))
    assert is_disk_full(RuntimeError("I/O error: Disk quota exceeded (os error 122)"))
    assert is_disk_full(RuntimeError('IoError(Os { code: 122, kind: QuotaExceeded, message: "..." })'))
    assert not is_disk_full(OSError(errno.EACCES, "denied"))


def test_free_bytes_of_a_folder_to_come(tmp_path: Path) -> None:
    assert files.free_bytes(tmp_path / "a" / "b") > 0


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (3 * 1024**3, "3.0 GiB"), (2**50, "1024.0 TiB")],
)
def test_human_bytes(count: int, text: str) -> None:
    assert human_bytes(count) == text


def test_need_file(tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("x")
    (tmp_path / "empty.json").touch()
    assert need_file(tmp_path / "there.json", "the file") == tmp_path / "there.json"
    for path, expected in [
        (tmp_path / "ther.json", "there.json"),
        (tmp_path / "no" / "where", "is no folder or empty"),
        (tmp_path / "empty.json", "is empty (0 bytes)"),
    ]:
        with pytest.raises(UserError) as caught:
            need_file(path, "the file")
        assert expected in str(caught.value)


def test_home_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LUTHIER_HOME", "~/elsewhere")
    assert files.home() == Path.home() / "elsewhere"
    monkeypatch.delenv("LUTHIER_HOME")
    assert files.home() == Path.home() / ".cache" / "luthier"


def test_need_place(tmp_path: Path) -> None:
    place = tmp_path / "still" / "to" / "be made.json"
    assert need_place(place, "--out") == place and not place.parent.exists()
    (tmp_path / "file").write_text("x")
    assert need_place(tmp_path / "file", "--out") == tmp_path / "file"
    with pytest.raises(UserError, match=r"--out '.*' is a folder"):
        need_place(tmp_path, "--out")
    with pytest.raises(UserError, match=r"can't be written: .*file is no folder"):
        need_place(tmp_path / "file" / "under" / "it.json", "--out")
