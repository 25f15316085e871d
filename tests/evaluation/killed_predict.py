"""Run as a program: `luthier predict` that dies by SIGKILL while it writes its n-th row.

python killed_predict.py COUNT PREDICT-ARGUMENTS...
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any


def main() -> int:
    from luthier.cli import main as luthier_main
    from luthier.evaluation import journal

    die_at, written = int(sys.argv[1]), 0
    whole = journal._line

    def half_a_line(value: Any) -> bytes:
        nonlocal written
        written += 1
        if written < die_at:
            return whole(value)
        stream = next(entry for entry in os.listdir("/proc/self/fd") if _is_journal(entry))
        os.write(int(stream), whole(value)[:20])
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError("not reached")

    journal._line = half_a_line
    return luthier_main(["predict", *sys.argv[2:]])


def _is_journal(descriptor: str) -> bool:
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}").endswith(".partial")
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
