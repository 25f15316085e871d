"""The peer's script of a preference stage, with TRL's reference computed once beforehand (precompute_ref_log_probs).

    python benchmarks/peer_precomputing.py ../shared/bench/peer_trainer.py --peer trl-dpo ...

Prints the script's JSON line, and in it the seconds that the reference took, which come before the first step.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import runpy
import sys
import tempfile
import time
from typing import Any

# what a run before this one computed would be found there
CACHE = tempfile.TemporaryDirectory()
os.environ["HF_DATASETS_CACHE"] = CACHE.name

import trl  # noqa: E402


class Precomputing(trl.DPOConfig):  # type: ignore[misc]
    """What the script sets, and this."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, precompute_ref_log_probs=True, **settings)


def main() -> int:
    seconds: list[float] = []
    compute = trl.DPOTrainer._precompute_ref_logps

    def timed(self: Any, *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        found = compute(self, *arguments, **named)
        seconds.append(time.perf_counter() - began)
        return found

    trl.DPOTrainer._precompute_ref_logps = timed
    trl.DPOConfig = Precomputing
    sys.argv = sys.argv[1:]
    written = io.StringIO()
    with contextlib.redirect_stdout(written):
        runpy.run_path(sys.argv[0], run_name="__main__")
    result = json.loads(written.getvalue().strip().splitlines()[-1])
    print(json.dumps({**result, "seconds_of_reference": round(sum(seconds), 2)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
