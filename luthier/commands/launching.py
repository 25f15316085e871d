"""`luthier train` on several devices of one machine: a process for each, started, watched and ended together.

What torchrun does for one node, with luthier's own exit status and without a launcher's traceback below an error.
Several machines: `torchrun --nnodes ... -m luthier.cli train CONFIG`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from luthier.config.loading import load
from luthier.foundation.errors import UserError
from luthier.foundation.ranks import is_launched

SECONDS_TO_END = 30.0  # what ranks have to end by themselves after one of them failed
SECONDS_BETWEEN_LOOKS = 0.1


def processes_for(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str], asked: int | None) -> int:
    """How many processes a run is to have on this machine: those asked for, else one for each of several GPUs.

    Raises:
        UserError: a launcher started this process already; the config can't be read, or has an engine for one process.
    """
    if is_launched():
        if asked is not None:
            raise UserError("--nproc-per-node was given to a process that a launcher started.", "Leave it to torchrun.")
        return 1
    if asked is None:
        import torch

        asked = torch.cuda.device_count()
        if asked <= 1:
            return 1
        training = load(source, overrides).training
        return 1 if training.use_cpu or training.engine == "single" else asked
    training = load(source, overrides).training
    if asked > 1 and training.engine == "single":
        raise UserError(
            f"--nproc-per-node is {asked}, but training.engine is single.", "Set training.engine to auto or ddp."
        )
    return asked


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `luthier ARGUMENTS` in so many processes that know each other; the exit status of the first that failed, or 0.

    Ctrl-C and SIGTERM reach every process, which finish their step, save and end.
    """
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
    }
    if processes > 1:  # else every process takes all cores, and they wait for each other
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes))
    children: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGTERM if number == signal.SIGTERM else signal.SIGINT)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "luthier.cli", *arguments]
            # a group of its own: a terminal's Ctrl-C would reach it twice, and a second one means "at once"
            children.append(subprocess.Popen(command, env={**os.environ, **shared, **place}, start_new_session=True))
        return _watch(children)
    finally:
        for child in children:
            child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; where one fails, the others, which would wait for it, are asked to end, and then made to."""
    failed, deadline = 0, float("inf")
    while True:
        running = [child for child in children if child.poll() is None]
        statuses = [child.returncode for child in children if child.returncode]
        if statuses and not failed:
            failed = min(statuses)  # one ended by a signal (below 0) took the others with it
            deadline = time.monotonic() + SECONDS_TO_END
            for child in running:
                child.terminate()
        if not running:
            break
        if time.monotonic() > deadline:
            for child in running:
                child.kill()
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if failed >= 0:
        return failed
    rank = next(place for place, child in enumerate(children) if child.returncode == failed)
    print(f"error: rank {rank} was ended by {signal.Signals(-failed).name}.", file=sys.stderr)
    print("If nobody did that, the system did: mostly because memory ran out. Go on with --resume.", file=sys.stderr)
    return 128 - failed


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
