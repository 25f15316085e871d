"""`luthier train` on several devices of one machine: a process for each, started, watched and ended together.

What torchrun does for one node, with luthier's own exit status and without a launcher's traceback below an error.
Several machines: `torchrun --nnodes ... -m luthier.cli train CONFIG`.
"""

from __future__ import annotations

import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from luthier.commands import refusals, run_folder
from luthier.config.files import ConfigLoader
from luthier.config.yaml_text import flow
from luthier.foundation.errors import UserError
from luthier.foundation.ranks import is_launched

PROCESSES = "LUTHIER_NPROC_PER_NODE"  # for the command that resumes
SECONDS_TO_TELL = 5.0  # what the others have, after one rank failed, to end by themselves with what they know
SECONDS_TO_END = 30.0  # and before they are killed
SECONDS_BETWEEN_LOOKS = 0.1


def processes_for(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str],
    asked: int | None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> int:
    """How many processes a run is to have on this machine: those asked for, else one for each of several GPUs.

    What can be refused is, before torch is imported to count them, which takes seconds, and before each would meet it.

    Raises:
        UserError: a launcher started this process already; the config can't be read, names what is not there, or has an
            engine for one process; its folder is in use.
    """
    if is_launched():
        if asked is not None:
            raise UserError("--nproc-per-node was given to a process that a launcher started.", "Leave it to torchrun.")
        return 1
    _refuse_pipe(source)
    config = refusals.read(source, overrides)
    training = config.training
    if asked is not None and asked > 1 and training.engine == "single":
        raise UserError(
            f"--nproc-per-node is {asked}, but training.engine is single.", "Set training.engine to auto or ddp."
        )
    if asked == 1 or (asked is None and (training.use_cpu or training.engine == "single")):
        return 1
    command = command_line(source, overrides, trust_remote_code=trust_remote_code, processes=asked)
    folder = Path(config.output_dir)
    run_folder.check_claim(folder, resume=resume, overwrite=overwrite, resume_command=resuming(command))
    refusals.check(config, may_fetch=False)
    if asked is not None:
        return asked
    import torch

    return max(1, torch.cuda.device_count())


def _refuse_pipe(source: str | Path | Mapping[str, Any] | None) -> None:
    """Raise UserError for a config that can be read only once: this process reads it, and so does the run."""
    place = Path(source) if isinstance(source, (str, Path)) else None
    if place is not None and place.exists() and not place.is_file() and not place.is_dir():
        raise UserError(
            f"the config {str(source)!r} is no regular file.",
            "A run reads its config more than once, and so does who goes on with it: write it to a file.",
        )


def launch(arguments: Sequence[str], processes: int) -> int:
    """Run `luthier ARGUMENTS` in so many processes that know each other; the exit status of the first that failed, or 0.

    Ctrl-C and SIGTERM reach every process, which finish their step, save and end; so does the end of the terminal, but
    where it is ignored, as under nohup.
    """
    shared = {
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        PROCESSES: str(processes),
    }
    if processes > 1:  # else every process takes all cores, and they wait for each other
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores // processes))
    children: list[subprocess.Popen[bytes]] = []

    asked_to_end = False

    def pass_on(number: int, frame: FrameType | None) -> None:
        nonlocal asked_to_end
        asked_to_end = True
        for child in children:
            if child.poll() is None:
                child.send_signal(signal.SIGINT if number == signal.SIGINT else signal.SIGTERM)

    outlives = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    caught = (signal.SIGINT, signal.SIGTERM, *(() if outlives else (signal.SIGHUP,)))
    before = {number: signal.signal(number, pass_on) for number in caught}
    try:
        for rank in range(processes):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            command = [sys.executable, "-m", "luthier.cli", *arguments]
            # a group of its own: a terminal's Ctrl-C would reach it twice, and a second one means "at once"
            children.append(subprocess.Popen(command, env={**os.environ, **shared, **place}, start_new_session=True))
        status = _watch(children)
        if status < 0 and not asked_to_end:
            _tell_of_signal(children, -status)
        return status if status >= 0 else 128 - status
    finally:
        for child in children:
            child.kill()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch(children: Sequence[subprocess.Popen[bytes]]) -> int:
    """Wait for all; where one fails, the others, which would wait for it, are asked to end, and then made to.

    Returns:
        The status of the one that failed first, below 0 the signal that ended it; 0 where none did.
    """
    failed, since, told = 0, float("inf"), False
    while True:
        running = [child for child in children if child.poll() is None]
        statuses = [child.returncode for child in children if child.returncode]
        if statuses and not failed:
            failed = min(statuses)  # one ended by a signal (below 0) took the others with it
            since = time.monotonic()
        if not running:
            break
        waited = time.monotonic() - since
        for child in running:
            if waited > SECONDS_TO_END:
                child.kill()
            elif waited > SECONDS_TO_TELL and not told:
                child.terminate()
        told = waited > SECONDS_TO_TELL
        time.sleep(SECONDS_BETWEEN_LOOKS)
    return failed


def _tell_of_signal(children: Sequence[subprocess.Popen[bytes]], number: int) -> None:
    rank = next(place for place, child in enumerate(children) if child.returncode == -number)
    print(f"error: rank {rank} was ended by {signal.Signals(number).name}.", file=sys.stderr)
    print("If nobody did that, the system did: mostly because memory ran out. Go on with --resume.", file=sys.stderr)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command_line(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str],
    *,
    trust_remote_code: bool = False,
    processes: int | None = None,
) -> str:
    """The command that starts the same run, without secrets; `processes`: as many as were asked for, None: as the
    launcher says."""
    if source is not None and not isinstance(source, (str, Path)):
        return "luthier.train(config)"  # which trusts no code
    shown = [_without_token(setting) for setting in overrides if not setting.startswith("model.token=")]
    launcher = ["torchrun", "...", "-m", "luthier.cli"] if is_launched() else ["luthier"]
    ours = str(processes) if processes is not None else os.environ.get(PROCESSES)
    flags = ["--nproc-per-node", ours] if ours is not None else []
    if flags:
        launcher = ["luthier"]
    flags += ["--trust-remote-code"] if trust_remote_code else []
    return shlex.join([*launcher, "train", *([str(source)] if source is not None else []), *shown, *flags])


def _without_token(setting: str) -> str:
    """A setting as it was given, but a hub's token inside `model={...}`."""
    key, _, text = setting.partition("=")
    value = yaml.load(text, Loader=ConfigLoader) if key == "model" else None  # noqa: S506 - it is a SafeLoader
    if not isinstance(value, dict) or "token" not in value:
        return setting
    return f"model={flow({name: item for name, item in value.items() if name != 'token'})}"


def resuming(command: str) -> str:
    """The command that goes on with a run."""
    return "luthier.train(config, resume=True)" if command.startswith("luthier.train(") else f"{command} --resume"
