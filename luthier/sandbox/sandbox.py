"""Running queries that a model wrote: `Sandbox.run(database, sql) -> Outcome`, from as many threads as there are workers."""

from __future__ import annotations

import base64
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from luthier.sandbox import worker as worker_file
from luthier.sandbox.limits import Limits
from luthier.sandbox.snapshots import DatabaseError, Snapshots

# a worker stops a query itself; where it can't (one opcode goes on), it is killed so much later
GRACE_SECONDS = 1.0
# an answer has JSON's quotes, commas and escapes around its cells
ANSWER_FACTOR = 12
Cell = None | int | float | str | bytes
Row = tuple[Cell, ...]
Kind = Literal["", "sql", "forbidden", "time", "rows", "bytes", "memory", "database", "died"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a query.

    Args:
        columns: names of its columns.
        rows: its rows, in order.
        seconds: wall time in SQLite, fetching included.
        cut: there were more rows, and the call asked for the first ones only.
        kind: empty where it ended well; else sql (SQLite can't run it), forbidden, time, rows, bytes, memory, database
            (missing, corrupt), died (the process did).
        error: a short reason, where it did not end well.
    """

    columns: tuple[str, ...] = ()
    rows: tuple[Row, ...] = ()
    seconds: float = 0.0
    cut: bool = False
    kind: Kind = ""
    error: str = ""

    @property
    def ok(self) -> bool:
        return not self.kind


class Sandbox:
    """Workers that stand ready and a private folder with copies of the databases. A context manager.

    Args:
        workers: processes; so many threads may call `run` at the same time, others wait.
        limits: for every query; a call may lower rows and seconds.
    """

    def __init__(self, workers: int = 1, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._folder = tempfile.TemporaryDirectory(prefix="luthier-sandbox-")
        self._snapshots = Snapshots(Path(self._folder.name))
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._workers = [_Worker(self.limits) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and remove the copies."""
        for worker in self._workers:
            worker.stop()
        self._folder.cleanup()

    def run(self, database: Path, sql: str, *, first_rows: int | None = None, seconds: float | None = None) -> Outcome:
        """Run one query. Whatever it is, an outcome comes back within its time and a second more.

        Args:
            database: an SQLite file; never written, nor anything beside it.
            sql: one statement that reads.
            first_rows: so many are wanted, and the query is stopped after them without being at fault.
            seconds: in place of the limits' time, if less.
        """
        request = {
            "sql": sql,
            "rows": min(first_rows or self.limits.rows, self.limits.rows),
            "cut": first_rows is not None,
            "seconds": min(seconds or self.limits.seconds, self.limits.seconds),
        }
        return self._ask(database, request)

    def columns(self, database: Path) -> Outcome:
        """Rows (table, column) of the tables of a database, in its order."""
        return self._ask(database, {"seconds": self.limits.seconds})

    def _ask(self, database: Path, request: dict[str, Any]) -> Outcome:
        try:
            snapshot = self._snapshots.of(database)
            snapshot.check()
            worker = self._idle.get()
            try:
                outcome = worker.run({"database": str(snapshot.path), **request})
            finally:
                self._idle.put(worker)
            snapshot.check()
        except (DatabaseError, OSError) as error:
            return Outcome(kind="database", error=str(error))
        return outcome


class _Worker:
    """One child process, started when it is first needed and again after it died."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, request: dict[str, Any]) -> Outcome:
        seconds = request["seconds"]
        process = self._started()
        deadline = time.monotonic() + seconds + GRACE_SECONDS
        try:
            _write(process, json.dumps(request).encode(), deadline)
            value = json.loads(_read(process, self._limits.result_bytes * ANSWER_FACTOR, deadline))
            return _outcome(value)
        except TimeoutError:
            self.stop()
            return Outcome(kind="time", error=f"stopped after {seconds:g} seconds")
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            status = self.stop()
            return Outcome(kind="died", error=f"its process ended ({_why(status, error)})")

    def stop(self) -> int | None:
        """End the process; its exit status, if it had ended by itself before."""
        process, self._process = self._process, None
        if process is None:
            return None
        try:
            status = process.wait(0.05)
        except subprocess.TimeoutExpired:
            status = None
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        return status

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._process.poll() is not None:
            self.stop()
            command = [sys.executable, "-I", "-S", str(Path(worker_file.__file__)), json.dumps(asdict(self._limits))]
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                bufsize=0,
                env={"PATH": os.defpath},
                start_new_session=True,  # a Ctrl-C at the terminal is for the parent to handle
            )
            assert self._process.stdin is not None
            os.set_blocking(self._process.stdin.fileno(), False)
        return self._process


def _write(process: subprocess.Popen[bytes], body: bytes, deadline: float) -> None:
    assert process.stdin is not None
    descriptor = process.stdin.fileno()
    rest = memoryview(len(body).to_bytes(8, "big") + body)
    while rest:
        _, ready, _ = select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        rest = rest[os.write(descriptor, rest) :]


def _read(process: subprocess.Popen[bytes], most: int, deadline: float) -> bytes:
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    size = int.from_bytes(_exactly(descriptor, 8, deadline), "big")
    if size > most:
        raise ValueError("an answer too long")
    return _exactly(descriptor, size, deadline)


def _exactly(descriptor: int, size: int, deadline: float) -> bytes:
    parts: list[bytes] = []
    while size:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        part = os.read(descriptor, min(size, 1 << 20))
        if not part:
            raise EOFError("no answer")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _outcome(value: dict[str, Any]) -> Outcome:
    if "error" in value:
        return Outcome(kind=value["kind"], error=str(value["error"]))
    rows = tuple(tuple(map(_cell, row)) for row in value["rows"])
    return Outcome(tuple(value["columns"]), rows, float(value["seconds"]), bool(value["cut"]))


def _cell(value: Any) -> Cell:
    return base64.b64decode(value["blob"]) if isinstance(value, dict) else value


def _why(status: int | None, error: Exception) -> str:
    if status is None:
        return str(error) or type(error).__name__
    return f"signal {-status}" if status < 0 else f"status {status}"
