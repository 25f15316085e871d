"""The pool of workers, its limits, and the copies that queries run on."""

from __future__ import annotations

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from luthier.sandbox import snapshots
from luthier.sandbox.limits import Limits
from luthier.sandbox.sandbox import Sandbox
from tests.sandbox.conftest import make_database, state_of


def processes_of(sandbox: Sandbox) -> list[int]:
    return [worker._process.pid for worker in sandbox._workers if worker._process is not None]


def test_a_worker_is_kept_between_queries(database: Path) -> None:
    with Sandbox() as sandbox:
        assert sandbox.run(database, "SELECT 1").rows == ((1,),)
        first = processes_of(sandbox)
        assert sandbox.run(database, "SELECT nothing").kind == "sql"
        assert sandbox.run(database, "SELECT 2").rows == ((2,),)
        assert processes_of(sandbox) == first and len(first) == 1
    assert not Path(f"/proc/{first[0]}").exists()


def test_a_killed_worker_is_replaced(database: Path) -> None:
    with Sandbox() as sandbox:
        sandbox.run(database, "SELECT 1")
        (process,) = processes_of(sandbox)
        os.kill(process, signal.SIGKILL)
        died = sandbox.run(database, "SELECT 1")
        assert died.ok or (died.kind == "died" and "signal 9" in died.error)
        assert sandbox.run(database, "SELECT 1").rows == ((1,),)
        assert processes_of(sandbox) != [process]


def test_a_worker_that_does_not_answer_is_killed(database: Path, sandbox: Sandbox) -> None:
    before = set(processes_of(sandbox))
    started = time.monotonic()
    # one opcode that no progress handler interrupts
    outcome = sandbox.run(database, "SELECT instr(hex(zeroblob(400000)), hex(zeroblob(100000)) || '1')")
    assert outcome.kind == "time" and outcome.error == "stopped after 0.2 seconds"
    assert 0.2 <= time.monotonic() - started < 3
    assert set(processes_of(sandbox)) != before or not before


def test_many_threads_share_a_few_workers(database: Path) -> None:
    with Sandbox(2) as sandbox, ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda number: sandbox.run(database, f"SELECT {number}"), range(200)))
        assert [outcome.rows for outcome in outcomes] == [((number,),) for number in range(200)]
        assert len(processes_of(sandbox)) == 2


def test_limits_of_a_call(database: Path, sandbox: Sandbox) -> None:
    first = sandbox.run(database, "SELECT value FROM number ORDER BY value", first_rows=3)
    assert first.ok and first.cut and first.rows == ((1,), (2,), (3,))
    whole = sandbox.run(database, "SELECT value FROM number WHERE value < 4", first_rows=3)
    assert whole.ok and not whole.cut and len(whole.rows) == 3
    assert sandbox.run(database, "SELECT a.value FROM number a, number b").error == "more than 1,000 rows"
    assert (
        sandbox.run(database, "SELECT hex(zeroblob(1000)) FROM number, singer").error
        == "a result of more than 1,048,576 bytes"
    )
    started = time.monotonic()
    late = sandbox.run(database, "SELECT count(*) FROM number a, number b, number c, number d", seconds=0.1)
    assert late.error == "stopped after 0.1 seconds" and 0.1 <= time.monotonic() - started < 2


@pytest.mark.parametrize("name", list(asdict(Limits())))
def test_a_limit_of_nothing_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be above 0, found 0"):
        Limits(**{name: 0})


def test_the_process_may_write_no_file_and_take_no_more_memory(database: Path) -> None:
    with Sandbox(1, Limits(memory_bytes=1 << 20)) as sandbox:
        assert sandbox.run(database, "SELECT length(hex(zeroblob(2000000)))").kind == "memory"
        assert sandbox.run(database, "SELECT 1").ok
        (process,) = processes_of(sandbox)
        limits = Path(f"/proc/{process}/limits").read_text()
        assert [line.split()[3:5] for line in limits.splitlines() if line.startswith("Max file size")] == [["0", "0"]]
        assert f"{(1 << 20) + (768 << 20)}" in limits
        assert Path(f"/proc/{process}/cwd").resolve() == Path("/")
        assert b"PYTHON" not in Path(f"/proc/{process}/environ").read_bytes()


def test_under_narrower_limits_of_the_system_it_runs_too(database: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from luthier.sandbox.sandbox import Sandbox\n"
        "resource.setrlimit(resource.RLIMIT_AS, (900 << 20, 900 << 20))\n"
        "with Sandbox() as sandbox: print(sandbox.run(Path(sys.argv[1]), 'SELECT count(*) FROM singer').rows)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(database)], capture_output=True, text=True, check=True)
    assert done.stdout == "((3,),)\n"


def test_columns_of_the_tables(database: Path, sandbox: Sandbox) -> None:
    found = sandbox.columns(database).rows
    assert found[:4] == (("singer", "id"), ("singer", "name"), ("singer", "age"), ("number", "value"))
    assert ("young", "name") not in found
    # the guard is back
    assert sandbox.run(database, "PRAGMA table_info(singer)").kind == "forbidden"


def test_text_that_is_no_utf8_is_read(tmp_path: Path, sandbox: Sandbox) -> None:
    path = make_database(
        tmp_path / "a.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES (CAST(x'63616665e9' AS TEXT));"
    )
    assert sandbox.run(path, "SELECT a FROM t").rows == (("cafe",),)


@pytest.mark.parametrize("content", [None, b"", b"no database", b"SQLite format 3\0" + b"\xff" * 5000])
def test_a_missing_or_corrupt_database(tmp_path: Path, sandbox: Sandbox, content: bytes | None) -> None:
    path = tmp_path / "a.sqlite"
    if content is not None:
        path.write_bytes(content)
    outcome = sandbox.run(path, "SELECT 1 FROM sqlite_master")
    assert outcome.kind == "database" and outcome.error
    assert sandbox.columns(path).kind == "database"
    assert path.exists() == (content is not None)


def test_a_database_with_damaged_pages(database: Path, tmp_path: Path, sandbox: Sandbox) -> None:
    content = bytearray(database.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    path = tmp_path / "a.sqlite"
    path.write_bytes(content)
    assert sandbox.run(path, "SELECT * FROM singer, number").kind == "database"


def test_what_is_in_a_write_ahead_log_is_seen_and_stays_there(tmp_path: Path) -> None:
    path = tmp_path / "wal.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.executescript(
            "PRAGMA journal_mode = WAL; PRAGMA wal_autocheckpoint = 0; CREATE TABLE t (a); INSERT INTO t VALUES (5);"
        )
        before = state_of(tmp_path)
        assert "wal.sqlite-wal" in before
        with Sandbox() as sandbox:
            assert sandbox.run(path, "SELECT a FROM t").rows == ((5,),)
        assert state_of(tmp_path) == before


def test_a_journal_of_a_broken_transaction_is_undone_in_the_copy(tmp_path: Path) -> None:
    path = make_database(tmp_path / "a.sqlite", "PRAGMA page_size = 512; CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    script = (
        "import os, sqlite3, sys\n"
        "c = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "c.executescript('PRAGMA cache_size = 1; BEGIN; UPDATE t SET a = 2;')\n"
        "c.executemany('INSERT INTO t VALUES (?)', [('x' * 400,)] * 200)\n"
        "os._exit(0)\n"  # the transaction is never ended: a hot journal stays
    )
    assert os.spawnv(os.P_WAIT, sys.executable, [sys.executable, "-c", script, str(path)]) == 0
    before = state_of(tmp_path)
    assert "a.sqlite-journal" in before
    with Sandbox() as sandbox:
        assert sandbox.run(path, "SELECT a FROM t").rows == ((1,),)
    assert state_of(tmp_path) == before


def test_a_large_database_is_read_in_place_and_watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_database(tmp_path / "a.sqlite", "CREATE TABLE t (a); INSERT INTO t VALUES (1);")
    with Sandbox() as sandbox:
        monkeypatch.setattr(sandbox._snapshots, "_copied_bytes", 10)
        before = state_of(tmp_path)
        assert sandbox.run(path, "SELECT a FROM t").rows == ((1,),)
        assert sandbox._snapshots.of(path).path == path and state_of(tmp_path) == before
        os.utime(path, ns=(1, 1))
        changed = sandbox.run(path, "SELECT a FROM t")
        assert changed.kind == "database" and "changed while it was read" in changed.error


def test_without_room_for_a_copy_a_database_is_read_in_place(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with Sandbox() as sandbox:
        monkeypatch.setattr(snapshots.shutil, "copyfile", full)
        assert sandbox.run(database, "SELECT count(*) FROM singer").rows == ((3,),)
        snapshot = sandbox._snapshots.of(database)
        assert snapshot.path == database and snapshot.stamp is not None
        assert list(Path(sandbox._folder.name).iterdir()) == []


def test_a_copy_is_made_once_and_removed(database: Path) -> None:
    with Sandbox() as sandbox:
        copy = sandbox._snapshots.of(database).path
        assert copy != database and copy == sandbox._snapshots.of(database).path
        assert copy.read_bytes() == database.read_bytes()
        database.touch()
        assert sandbox.run(database, "SELECT 1").ok
    assert not copy.parent.exists()
    assert snapshots.companions(database)[0].name == "songs.sqlite-wal"
