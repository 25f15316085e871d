"""One child process that runs queries: started when it is first needed, and again after it died."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luthier.foundation.errors import UserError
from luthier.sandbox import worker as worker_file
from luthier.sandbox.limits import Limits

# a worker stops a query itself; where it can't (one opcode goes on), it is killed so much later
GRACE_SECONDS = 1.0
# a new worker has run a first query before it is given one; its interpreter may come from a slow disk
START_SECONDS = 60.0
# an answer has JSON's quotes, commas and escapes around its cells; a worker refuses to send a longer one
ANSWER_FACTOR = 2
ANSWER_HEAD_BYTES = 1 << 20
# where an interpreter that was built with shared libraries finds them, on machines that tell it so
LIBRARY_PATHS = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH", "DYLD_FRAMEWORK_PATH")


class DiedError(Exception):
    """The process ended before it answered; says how."""


class ClosedError(Exception):
    """The sandbox was closed while a query ran or waited."""


class Child:
    """Talks to one process. `ask` and `stop` are for one thread at a time; `close` for any.

    Args:
        limits: for every query.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._most = limits.result_bytes * ANSWER_FACTOR + ANSWER_HEAD_BYTES
        self._process: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """Of the process, where there is one."""
        return None if self._process is None else self._process.pid

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer to a request as `worker.py` describes it.

        Raises:
            TimeoutError: none came within the request's time and the grace; the process was killed.
            DiedError: the process ended, or answered nonsense. ClosedError: `close` was called.
            UserError: no process can be started here.
        """
        process = self.start()
        deadline = time.monotonic() + request["seconds"] + GRACE_SECONDS
        try:
            _write(process, json.dumps(request).encode(), deadline)
            return self._answer(process, deadline)
        except TimeoutError:
            self.stop()
            raise
        except (OSError, EOFError, ValueError, RecursionError, TypeError) as error:
            status, _ = self.stop()
            if self._closed:
                raise ClosedError from None
            raise DiedError(_why(status, error)) from error

    def start(self) -> subprocess.Popen[bytes]:
        """The process, which has shown that it can run a query.

        Raises:
            ClosedError: `close` was called. UserError: it can't be started here, with what it said.
        """
        if self._process is not None and self._process.poll() is None:
            return self._process
        self.stop()
        command = [sys.executable, "-I", "-S", str(Path(worker_file.__file__))]
        limits = json.dumps({**asdict(self._limits), "answer_bytes": self._most})
        try:
            with self._lock:
                if self._closed:
                    raise ClosedError
                process = self._process = subprocess.Popen(
                    [*command, limits],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    bufsize=0,
                    env={
                        "PATH": os.defpath,
                        **{name: os.environ[name] for name in LIBRARY_PATHS if name in os.environ},
                    },
                    start_new_session=True,  # a Ctrl-C at the terminal is for the parent to handle
                )
        except OSError as error:
            raise _cannot_start(str(error)) from error
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        try:
            said = self._answer(process, time.monotonic() + START_SECONDS)
        except (OSError, EOFError, ValueError) as error:
            status, words = self.stop()
            if self._closed:
                raise ClosedError from None
            late = isinstance(error, TimeoutError)
            raise _cannot_start(
                words or (f"no word in {START_SECONDS:g} seconds" if late else _why(status, error))
            ) from error
        if said != worker_file.READY:
            self.stop()
            raise _cannot_start(str(said.get("error", said)))
        return process

    def stop(self) -> tuple[int | None, str]:
        """End the process; its exit status, if it had ended by itself before, and the last of what it said on standard
        error."""
        process, self._process = self._process, None
        if process is None:
            return None, ""
        try:
            status = process.wait(0.05)
        except subprocess.TimeoutExpired:
            status = None
            process.kill()
            process.wait()
        assert process.stdin and process.stdout and process.stderr
        os.set_blocking(process.stderr.fileno(), False)
        words = (process.stderr.read() or b"").decode(errors="replace").strip()
        for stream in (process.stdin, process.stdout, process.stderr):
            stream.close()
        return status, words[-2000:]

    def close(self) -> None:
        """Kill the process, and start none any more."""
        with self._lock:
            self._closed = True
            process = self._process  # read once: `stop` takes it away meanwhile, without the lock
        if process is not None:
            process.kill()

    def _answer(self, process: subprocess.Popen[bytes], deadline: float) -> dict[str, Any]:
        assert process.stdout is not None
        descriptor = process.stdout.fileno()
        size = int.from_bytes(_exactly(descriptor, 8, deadline), "big")
        if size > self._most:
            raise ValueError("an answer too long")
        value = json.loads(_exactly(descriptor, size, deadline))
        if not isinstance(value, dict):
            raise ValueError("an answer that is none")
        return value


def _cannot_start(words: str) -> UserError:
    return UserError(
        f"the process that runs queries can't be started: {words.splitlines()[-1] if words else 'it ended without a word'}",
        f"It is `{sys.executable} -I -S {worker_file.__file__}`, started without the environment but for "
        f"{', '.join(LIBRARY_PATHS)}.",
    )


def _write(process: subprocess.Popen[bytes], body: bytes, deadline: float) -> None:
    assert process.stdin is not None
    descriptor = process.stdin.fileno()
    rest = memoryview(len(body).to_bytes(8, "big") + body)
    while rest:
        _, ready, _ = select.select([], [descriptor], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        rest = rest[os.write(descriptor, rest) :]


def _exactly(descriptor: int, size: int, deadline: float) -> bytearray:
    content = bytearray(size)
    rest = memoryview(content)
    while rest:
        ready, _, _ = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            raise TimeoutError
        count = os.readv(descriptor, [rest[: 1 << 20]])
        if not count:
            raise EOFError("no answer")
        rest = rest[count:]
    return content


def _why(status: int | None, error: Exception) -> str:
    if status is None:
        return str(error) or type(error).__name__
    return f"signal {-status}" if status < 0 else f"status {status}"
