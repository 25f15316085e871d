"""The pool of workers, its limits, and the copies that queries run on."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest

from luthier.foundation.errors import UserError
from luthier.sandbox import snapshots, worker
from luthier.sandbox.child import Child, ClosedError
from luthier.sandbox.limits import Limits
from luthier.sandbox.sandbox import Sandbox
from tests.sandbox.conftest import make_database, state_of


def processes_of(sandbox: Sandbox) -> list[int]:
    return [worker.pid for worker in sandbox._workers if worker.pid is not None]


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


@pytest.mark.parametrize("ends", ["sys.exit('no such library: libpython.so')", "sys.exit(3)", "print('no answer')"])
def test_a_process_that_does_not_start_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    """Not a score of 0 for every item: an interpreter without its libraries, or an answer that is none."""
    broken = tmp_path / "worker.py"
    broken.write_text(f"import sys\n{ends}\n")
    monkeypatch.setattr(worker, "__file__", str(broken))
    with pytest.raises(UserError, match=r"can't be started: (no such library|status [03])"), Sandbox():
        pass


def test_an_interpreter_finds_its_shared_libraries(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/python/lib")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    with Sandbox() as sandbox:
        (process,) = processes_of(sandbox)
        environment = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        assert b"LD_LIBRARY_PATH=/opt/python/lib" in environment and not [x for x in environment if b"PYTHON" in x]


def test_a_process_that_dies_once_is_tried_again(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that the system killed for memory says nothing about the query."""
    with Sandbox() as sandbox:
        (child,) = sandbox._workers
        whole, died = child._answer, []

        def dying(process: subprocess.Popen[bytes], deadline: float) -> dict[str, object]:
            answer = whole(process, deadline)
            if answer != worker.READY and len(died) < deaths:
                died.append(process.pid)
                process.kill()
                process.wait()
                raise EOFError("no answer")
            return answer

        monkeypatch.setattr(child, "_answer", dying)
        deaths = 1
        assert sandbox.run(database, "SELECT 7").rows == ((7,),) and len(died) == 1
        died.clear()
        deaths = 2
        outcome = sandbox.run(database, "SELECT 7")
        assert (outcome.kind, outcome.error) == ("died", "its process ended twice (signal 9)") and len(set(died)) == 2


def test_a_limit_of_processor_time_that_is_near(database: Path) -> None:
    code = (
        "import resource, sys; from pathlib import Path; from luthier.sandbox.sandbox import Sandbox\n"
        "resource.setrlimit(resource.RLIMIT_CPU, (9, 9))\n"  # less than a query's time and 10 seconds
        "with Sandbox() as sandbox: print(sandbox.run(Path(sys.argv[1]), 'SELECT count(*) FROM singer').rows)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(database)], capture_output=True, text=True, check=True)
    assert done.stdout == "((3,),)\n"


def test_a_system_that_limits_no_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """As macOS for a process that is larger already; every other limit is a must, and on Linux that one is, too."""
    taken: list[int] = []
    refused = {resource.RLIMIT_AS}

    def limit(kind: int, _: tuple[int, int]) -> None:
        if kind in refused:
            raise ValueError("not allowed to raise maximum limit")
        taken.append(kind)

    monkeypatch.setattr(worker.resource, "setrlimit", limit)
    monkeypatch.setattr(worker.sys, "platform", "darwin")
    worker.confine(asdict(Limits()))
    assert {resource.RLIMIT_FSIZE, resource.RLIMIT_NPROC} <= set(taken)
    refused.add(resource.RLIMIT_FSIZE)
    with pytest.raises(ValueError, match="maximum limit"):
        worker.confine(asdict(Limits()))
    refused.remove(resource.RLIMIT_FSIZE)
    monkeypatch.setattr(worker.sys, "platform", "linux")
    with pytest.raises(ValueError, match="maximum limit"):
        worker.confine(asdict(Limits()))


def test_an_answer_is_no_longer_than_the_parent_takes(database: Path) -> None:
    """Control characters are six bytes each as JSON, and columns may have names as long as the query."""
    with Sandbox(1, Limits(result_bytes=1 << 20)) as sandbox:
        (before,) = processes_of(sandbox)
        assert sandbox.run(database, "SELECT replace(hex(zeroblob(450000)), '0', char(1))").error == (
            "a result of more than 3,145,728 bytes as it is sent"
        )
        wide = f"WITH c AS (SELECT 1 AS '{'x' * 500_000}') SELECT {', '.join(['c.*'] * 10)} FROM c"
        assert sandbox.run(database, wide).kind == "bytes"
        text = sandbox.run(database, "SELECT replace(hex(zeroblob(100000)), '0', char(128512)), 'ü' || char(0) || 'x'")
        assert text.rows == (("\U0001f600" * 200_000, "ü\0x"),)
        assert processes_of(sandbox) == [before]


def test_empty_texts_count_too(database: Path) -> None:
    columns = ", ".join(["''"] * 500)
    with Sandbox(1, Limits(result_bytes=1 << 20)) as sandbox:
        assert sandbox.run(database, f"SELECT {columns} FROM number").kind == "bytes"


def test_an_answer_for_which_there_is_no_memory() -> None:
    class Large(list[object]):
        def __iter__(self) -> Iterator[object]:
            raise MemoryError

    assert json.loads(worker.body_of({"rows": Large([1])}, 100))["kind"] == "memory"


def test_an_interruption_waits_for_no_query(database: Path) -> None:
    """Neither for one that runs, nor for those that wait or would run next."""
    endless = "SELECT count(*) FROM number a, number b, number c, number d"
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt), Sandbox(2, Limits(seconds=60)) as sandbox, sandbox.threads() as threads:
        tasks = [threads.submit(lambda: [sandbox.run(database, endless) for _ in range(3)]) for _ in range(4)]
        while len(running := processes_of(sandbox)) < 2:
            assert time.monotonic() - started < 30, "the second worker was never started"
            time.sleep(0.01)
        interrupted = time.monotonic()
        raise KeyboardInterrupt
    assert time.monotonic() - interrupted < 10
    assert all(task.cancelled() or isinstance(task.exception(), ClosedError) for task in tasks)
    assert not [process for process in running if Path(f"/proc/{process}").exists()]
    with pytest.raises(ClosedError):
        sandbox._workers[0].start()


def test_a_worker_that_is_stopped_meanwhile_is_closed() -> None:
    """Another thread's `stop` takes the process away between two looks at it."""
    killed: list[bool] = []
    looks: list[object] = [SimpleNamespace(kill=lambda: killed.append(True))]

    class Stopped(Child):
        _process = property(lambda self: looks.pop() if looks else None, lambda self, value: None)  # type: ignore[assignment]

    Stopped(Limits()).close()
    assert killed == [True]


@pytest.mark.parametrize(
    "name",
    ["concat", "concat_ws", "if", "JSON_pretty", "unistr", "jsonb", "jsonb_extract", "jsonb_group_array", "percentile"],
)
def test_functions_of_newer_versions_are_allowed_where_there_are_such(name: str) -> None:
    """The SQLite of the tests may be older, so the guard is asked."""
    guard = worker.Guard()
    assert guard.authorize(sqlite3.SQLITE_FUNCTION, None, name, None, None) == sqlite3.SQLITE_OK
    assert guard.authorize(sqlite3.SQLITE_FUNCTION, None, f"{name}_x", None, None) == sqlite3.SQLITE_DENY


def test_what_sqlite_itself_computes_is_allowed() -> None:
    """Of the functions that are built in, those alone are refused that load, look at files or belong to virtual tables."""
    with closing(sqlite3.connect(":memory:")) as opened:
        built_in = {name for name, own in opened.execute("SELECT name, builtin FROM pragma_function_list") if own}
    refused = {name for name in built_in - worker.FUNCTIONS if "fts" not in name}
    assert all(name.startswith(("sqlite_", "load_extension", "rtree", "geopoly_", "fts")) for name in refused), refused


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
        with sandbox._snapshots.held(path) as file:
            assert file == path and state_of(tmp_path) == before
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
        with sandbox._snapshots.held(database) as file:
            assert file == database
        assert list(sandbox._folder.path.iterdir()) == []


def test_a_copy_is_made_once_and_removed(database: Path) -> None:
    with Sandbox() as sandbox:
        with sandbox._snapshots.held(database) as copy:
            assert copy != database
        with sandbox._snapshots.held(database) as again:
            assert copy == again
        assert copy.read_bytes() == database.read_bytes()
        database.touch()
        assert sandbox.run(database, "SELECT 1").ok
    assert not copy.parent.exists()
    assert snapshots.companions(database)[0].name == "songs.sqlite-wal"
