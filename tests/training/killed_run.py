"""Run as a program: trains a config and dies by SIGKILL where told.

    python killed_run.py CONFIG.json [--resume] [--die-at EVENT:COUNT]

EVENT is step (after the n-th optimizer step of this process), writing (while the n-th checkpoint of this process is
filled: weights written, manifest not) or renamed (right after the n-th checkpoint took its name, before older ones go).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arm(event: str, count: int) -> None:
    import luthier.training.checkpoints as checkpoints
    import luthier.training.loop as loop

    seen = 0

    def counted(function: Any, *, before: bool) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal seen
            seen += 1
            if before and seen == count:
                die()
            value = function(*args, **kwargs)
            if not before and seen == count:
                die()
            return value

        return call

    if event == "step":
        loop.train_step = counted(loop.train_step, before=False)
    elif event == "writing":
        checkpoints.seal = counted(checkpoints.seal, before=True)
    elif event == "renamed":
        checkpoints.find_fault = counted(checkpoints.find_fault, before=True)
    else:
        raise SystemExit(f"no event {event}")


def main() -> int:
    from luthier.cli import main as luthier_main

    arguments = sys.argv[1:]
    config = Path(arguments[0])
    if "--die-at" in arguments:
        event, _, count = arguments[arguments.index("--die-at") + 1].partition(":")
        import luthier.commands.assembly  # noqa: F401 - so that what is replaced is what runs

        arm(event, int(count))
    settings = json.loads(config.read_text())
    assert settings["output_dir"]
    return luthier_main(["train", str(config), *(["--resume"] if "--resume" in arguments else [])])


if __name__ == "__main__":
    sys.exit(main())
