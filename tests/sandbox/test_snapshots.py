"""How much room copies of databases take, what is done where they are being written, and what a killed run leaves."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from luthier.sandbox import snapshots
from luthier.sandbox.folders import PrivateFolder, remove_leftovers
from luthier.sandbox.snapshots import DatabaseError, Snapshots
from tests.sandbox.conftest import make_database, state_of


@pytest.fixture
def databases(tmp_path: Path) -> list[Path]:
    """Three of 8,192 bytes."""
    made = [
        make_database(tmp_path / f"{name}.sqlite", f"CREATE TABLE t (a); INSERT INTO t VALUES ('{name}');")
        for name in "abc"
    ]
    assert {path.stat().st_size for path in made} == {8192}
    return made


@pytest.fixture
def copies(tmp_path: Path) -> Path:
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder


def content_of(file: Path) -> str:
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro&immutable=1", uri=True)) as opened:
        return str(opened.execute("SELECT a FROM t").fetchone()[0])


def with_log(database: Path) -> Path:
    """What a killed writer leaves: a row that only the write-ahead log has."""
    script = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.executescript(\"PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; UPDATE t SET a = 'new';\")\n"
        "os._exit(0)\n"
    )
    subprocess.run([sys.executable, "-c", script, str(database)], check=True)
    assert snapshots.unmerged(database)
    return database


def test_idle_copies_make_room_the_longest_unused_first(databases: list[Path], copies: Path) -> None:
    kept = Snapshots(copies, total_bytes=20_000)
    for database in databases:
        with kept.held(database) as file:
            assert file.parent == copies and content_of(file) == database.stem
        assert sum(path.stat().st_size for path in copies.iterdir()) <= 20_000
    assert sorted(content_of(file) for file in copies.iterdir()) == ["b", "c"]
    with kept.held(databases[1]) as file:  # now c is the longest unused
        assert content_of(file) == "b"
    with kept.held(databases[0]) as file:
        assert content_of(file) == "a" and sorted(map(content_of, copies.iterdir())) == ["a", "b"]


def test_where_all_copies_are_read_the_next_database_is_read_in_place(databases: list[Path], copies: Path) -> None:
    kept = Snapshots(copies, total_bytes=20_000)
    with kept.held(databases[0]) as first, kept.held(databases[1]), kept.held(databases[2]) as third:
        assert first.exists() and third == databases[2] and len(list(copies.iterdir())) == 2


def test_a_database_that_is_copied_anew_must_be_the_same(databases: list[Path], copies: Path) -> None:
    kept = Snapshots(copies, total_bytes=10_000)
    for database in databases[:2]:
        with kept.held(database):
            pass
    os.utime(databases[0], ns=(1, 1))
    with pytest.raises(DatabaseError, match=r"a\.sqlite changed between two queries"), kept.held(databases[0]):
        pass


def test_a_log_is_merged_only_where_there_is_room(databases: list[Path], copies: Path) -> None:
    database = with_log(databases[0])
    before = state_of(database.parent)
    with (
        pytest.raises(DatabaseError, match="too large to be copied"),
        Snapshots(copies, total_bytes=9_000).held(database),
    ):
        pass
    with Snapshots(copies, copied_bytes=1, total_bytes=50_000).held(database) as file:
        assert content_of(file) == "new"
        assert {name: state for name, state in state_of(database.parent).items() if name in before} == before


def test_a_log_waits_until_there_is_room(databases: list[Path], copies: Path) -> None:
    database = with_log(databases[0])
    kept = Snapshots(copies, total_bytes=snapshots_size(database) + 100)
    read: list[str] = []

    def later() -> None:
        with kept.held(database) as file:
            read.append(content_of(file))

    with ExitStack() as stack:
        stack.enter_context(kept.held(databases[1]))
        thread = threading.Thread(target=later)
        thread.start()
        thread.join(0.2)
        assert not read and thread.is_alive()
    thread.join(10)
    assert read == ["new"]


def snapshots_size(database: Path) -> int:
    return sum(stamp[0] for stamp in snapshots.stamps_of(database))


def test_a_database_that_is_written_while_it_is_copied(
    databases: list[Path], copies: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, times = shutil.copyfile, []

    def disturbed(source: Path, target: Path) -> None:
        whole(source, target)
        times.append(source)
        if len(times) <= changes:
            os.utime(source, ns=(len(times), len(times)))

    monkeypatch.setattr(snapshots.shutil, "copyfile", disturbed)
    changes = 2
    with Snapshots(copies).held(databases[0]) as file:
        assert content_of(file) == "a" and len(times) == 3
    times.clear()
    changes = 3
    with pytest.raises(DatabaseError, match=r"b\.sqlite is being written"), Snapshots(copies).held(databases[1]):
        pass
    assert not list(copies.iterdir()), "what was copied of it counts nowhere, so it may not stay"


def test_a_log_that_goes_away_while_it_is_looked_at(databases: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """What a writer leaves no more is not there, at whatever moment it went."""
    log = snapshots.companions(with_log(databases[0]))[0]
    content, look = log.read_bytes(), Path.stat

    def last_look(path: Path, **more: bool) -> os.stat_result:
        found = look(path, **more)
        if path == log:
            log.unlink()
        return found

    monkeypatch.setattr(Path, "stat", last_look)
    assert snapshots.unmerged(databases[0]) == [log] and snapshots.unmerged(databases[0]) == []
    log.write_bytes(content)
    assert [len(snapshots.stamps_of(databases[0])) for _ in range(2)] == [2, 1]


KILLED = """
import os, sys, time
from luthier.sandbox.folders import PrivateFolder
folder = PrivateFolder()
(folder.path / "1.sqlite").write_bytes(b"x" * 1000)
print(folder.path, flush=True)
time.sleep(60)
"""


def test_what_a_killed_process_leaves_is_removed_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    strange = tmp_path / "luthier-sandbox-link"
    strange.symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "luthier-sandbox-file").write_text("no folder")
    with subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        theirs = Path(process.stdout.readline().strip())
        first = PrivateFolder()
        assert theirs.parent == tmp_path and (theirs / "1.sqlite").exists()  # it lives
        process.send_signal(signal.SIGKILL)
    assert theirs.exists()
    second = PrivateFolder()
    assert not theirs.exists() and first.path.exists() and strange.is_symlink() and (tmp_path / "elsewhere").exists()
    assert first.path.stat().st_mode & 0o777 == 0o700
    for folder in (first, second, second):
        folder.remove()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "elsewhere",
        "luthier-sandbox-file",
        "luthier-sandbox-link",
    ]


def test_a_new_folder_that_another_process_takes_for_a_leftover(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    whole, made = tempfile.mkdtemp, []

    def overtaken(**place: object) -> str:
        made.append(whole(**place))  # type: ignore[call-overload]
        if len(made) == 1:
            remove_leftovers(tmp_path)
        return made[-1]

    monkeypatch.setattr(tempfile, "mkdtemp", overtaken)
    folder = PrivateFolder()
    assert folder.path == Path(made[1]) and folder.path.is_dir() and not Path(made[0]).exists()
    folder.remove()
