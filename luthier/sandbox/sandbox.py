"""Running queries that a model wrote: `Sandbox.run(database, sql) -> Outcome`, from as many threads as there are workers."""

from __future__ import annotations

import base64
import queue
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from luthier.sandbox.child import Child, DiedError
from luthier.sandbox.folders import PrivateFolder
from luthier.sandbox.limits import Limits
from luthier.sandbox.snapshots import DatabaseError, Snapshots

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

    Raises:
        UserError: on entering, or later: a process that runs queries can't be started here.
    """

    def __init__(self, workers: int = 1, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._folder = PrivateFolder()
        self._snapshots = Snapshots(self._folder.path)
        self._idle: queue.LifoQueue[Child] = queue.LifoQueue()
        self._workers = [Child(self.limits) for _ in range(workers)]
        for worker in self._workers:
            self._idle.put(worker)

    def __enter__(self) -> Self:
        try:
            self._workers[-1].start()  # the one that is taken first
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the workers and what they run, and remove the copies. Threads that wait get a ClosedError."""
        for worker in self._workers:
            worker.close()
        stopped = [self._idle.get() for _ in self._workers]  # a thread whose worker is killed gives it back
        for worker in stopped:
            worker.stop()
            self._idle.put(worker)
        self._folder.remove()

    @contextmanager
    def threads(self) -> Iterator[ThreadPoolExecutor]:
        """A thread for each worker. Where the block ends with an error (a Ctrl-C, too) the sandbox is closed first, so that
        nobody waits for a query that still runs."""
        with ThreadPoolExecutor(len(self._workers)) as threads:
            try:
                yield threads
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                self.close()
                raise

    def run(self, database: Path, sql: str, *, first_rows: int | None = None, seconds: float | None = None) -> Outcome:
        """Run one query. Whatever it is, an outcome comes back within its time and a second more; or twice that, where its
        process dies and it is tried again.

        Args:
            database: an SQLite file; never written, nor anything beside it.
            sql: one statement that reads.
            first_rows: so many are wanted, and the query is stopped after them without being at fault.
            seconds: in place of the limits' time, if less.

        Raises:
            ClosedError: the sandbox was closed meanwhile.
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
            with self._snapshots.held(database) as file:
                worker = self._idle.get()
                try:
                    return _asked(worker, {"database": str(file), **request})
                finally:
                    self._idle.put(worker)
        except (DatabaseError, OSError) as error:
            return Outcome(kind="database", error=str(error))


def _asked(worker: Child, request: dict[str, Any]) -> Outcome:
    """What comes of a request; where the process died (the system may have been short of memory) of a second attempt."""
    reason = ""
    for _ in range(2):
        try:
            return _outcome(worker.ask(request))
        except TimeoutError:
            return Outcome(kind="time", error=f"stopped after {request['seconds']:g} seconds")
        except (DiedError, LookupError, TypeError, ValueError) as error:  # the others of an answer that is none
            reason = str(error)
    return Outcome(kind="died", error=f"its process ended twice ({reason})")


def _outcome(value: dict[str, Any]) -> Outcome:
    if "error" in value:
        return Outcome(kind=value["kind"], error=str(value["error"]))
    rows = tuple(tuple(map(_cell, row)) for row in value["rows"])
    return Outcome(tuple(value["columns"]), rows, float(value["seconds"]), bool(value["cut"]))


def _cell(value: Any) -> Cell:
    return base64.b64decode(value["blob"]) if isinstance(value, dict) else value
