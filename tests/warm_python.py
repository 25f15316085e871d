"""A Python that has imported what a run needs, and forks for each program that a test wants run in a process of its own.

Importing torch, transformers and peft takes seconds, and the tests that kill runs and go on with them start many. What is
forked is a process like any other: its own memory, environment and session, and signals end it.
"""

from __future__ import annotations

import atexit
import importlib
import json
import os
import resource
import runpy
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
IMPORTED = (
    "luthier.cli",
    "luthier.commands.assembly",
    "luthier.commands.train",
    "luthier.model.methods.lora",
    "luthier.model.tokenizers.extension",
    "luthier.training.engines.ddp",
    "luthier.training.engines.single",
    "luthier.training.loop",
    "luthier.training.metrics_log",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "transformers.models.llama.modeling_llama",
)

_server: subprocess.Popen[str] | None = None


def run(
    *arguments: str,
    outputs: Path,
    limits: Mapping[str, int] | None = None,
    environment: Mapping[str, str] | None = None,
    kill_after_seconds: float | None = None,
) -> subprocess.CompletedProcess[str]:
    """`python ARGUMENTS`, to its end; the working folder is the project's.

    Args:
        arguments: `-c CODE ...` or `FILE ...`.
        outputs: a folder for what it prints.
        limits: resource limits by name, such as RLIMIT_AS.
        environment: beside this process's.
        kill_after_seconds: send it SIGKILL, if it still runs then.
    """
    environments = [environment or {}]
    (done,) = run_together(
        arguments, outputs=outputs, limits=limits, environments=environments, kill_after_seconds=kill_after_seconds
    )
    return done


def run_together(
    arguments: Sequence[str],
    *,
    outputs: Path,
    environments: Sequence[Mapping[str, str]],
    limits: Mapping[str, int] | None = None,
    kill_after_seconds: float | None = None,
) -> list[subprocess.CompletedProcess[str]]:
    """As `run`, a process for each environment, all at once."""
    global _server
    if _server is None:
        _server = subprocess.Popen(
            [sys.executable, "-m", "tests.warm_python"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        atexit.register(close)
    assert _server.stdin is not None
    assert _server.stdout is not None
    programs = [
        {
            "arguments": arguments,
            "outputs": [str(outputs / f"stdout-{number}"), str(outputs / f"stderr-{number}")],
            "limits": dict(limits or {}),
            "environment": {**os.environ, "PYTHONPATH": str(ROOT), **environment},
        }
        for number, environment in enumerate(environments)
    ]
    try:
        print(json.dumps([programs, kill_after_seconds]), file=_server.stdin, flush=True)
        statuses = json.loads(_server.stdout.readline())
    except BaseException:  # the test's time is up
        close()
        raise
    return [
        subprocess.CompletedProcess(arguments, status, *(Path(path).read_text() for path in program["outputs"]))
        for program, status in zip(programs, statuses, strict=True)
    ]


def close() -> None:
    """End the warm process and what it runs."""
    global _server
    if _server is not None:
        _server.terminate()
        _server.communicate()
        _server = None


def serve() -> None:
    """Fork for the programs of every request, a line of JSON; answer with their exit statuses, below 0 a signal's number."""
    for name in IMPORTED:
        importlib.import_module(name)
    children: list[int] = []

    def end(*_: object) -> None:
        for child in children:
            os.kill(child, signal.SIGKILL)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    for line in sys.stdin:
        programs, kill_after_seconds = json.loads(line)
        for program in programs:
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                os._exit(_live(**program))
            children.append(child)
        if kill_after_seconds is not None:
            time.sleep(kill_after_seconds)
            for child in children:  # one that ended is still there to be killed, until it is waited for
                os.kill(child, signal.SIGKILL)
        statuses = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        children.clear()
        print(json.dumps(statuses), flush=True)


def _live(arguments: list[str], outputs: list[str], limits: dict[str, int], environment: dict[str, str]) -> int:
    """The forked process's life, which ends with a status."""
    os.setsid()
    os.environ.clear()
    os.environ.update(environment)
    for number, path in enumerate((os.devnull, *outputs)):
        opened = os.open(path, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(opened, number)
        os.close(opened)
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, name), (value, value))
    status: object = 0
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as ended:
        status = ended.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status if isinstance(status, int) else 1


if __name__ == "__main__":
    serve()
