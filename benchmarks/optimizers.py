"""Every optimizer on all weights of smollm2-135m: seconds of its step, memory of its state, and what it learns.

    python benchmarks/optimizers.py [--steps 24] [--only lion,muon] [--times 1.0]

Each is trained in a process of its own on the identity rows, 4 a step, at the rate that luthier recommends for it (times
--times), with AdamW's settings. Seconds are medians over the steps, of the optimizer's step alone and of the whole step;
galore's first, in which it looks for its subspaces, is told apart. State is what the optimizer keeps after the last step.
The loss is the mean of the first and of the last four steps. Results go to benchmarks/results/optimizers.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "optimizers.json"


class Clock(TrainerCallback):
    """Times the optimizer's step and weighs its state."""

    optimizer_seconds: list[float] = []  # noqa: RUF012 - luthier makes one of it for a run
    step_seconds: list[float] = []  # noqa: RUF012
    losses: list[float] = []  # noqa: RUF012
    state_bytes = 0

    def on_step_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.began = time.perf_counter()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.stepping = time.perf_counter()

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **more: Any) -> None:
        Clock.optimizer_seconds.append(time.perf_counter() - self.stepping)
        kept = {
            value.data_ptr(): value.nbytes
            for parts in optimizer.state.values()
            for value in parts.values()
            if hasattr(value, "data_ptr")
        }
        Clock.state_bytes = max(Clock.state_bytes, sum(kept.values()))

    def on_step_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        Clock.step_seconds.append(time.perf_counter() - self.began)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **more: Any) -> None:
        if "loss" in logs:
            Clock.losses.append(logs["loss"])


def one(name: str, steps: int, times: float) -> dict[str, Any]:
    """Train with one optimizer in this process."""
    import luthier
    from luthier.config.loading import load

    optim: dict[str, Any] = {"name": name}
    if name == "badam":
        optim["switch_block_every"] = max(1, steps // 32)  # a round over the 31 blocks
    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {
            "model": "smollm2-135m",
            "data": {"train": str(ROOT / "examples" / "identity" / "identity.jsonl")},
            "method": "full",
            "training": {
                "max_steps": steps,
                "optim": optim,
                "logging_steps": 1,
                "save_strategy": "no",
                "callbacks": ["benchmarks.optimizers.Clock"],
            },
            "output_dir": f"{folder}/run",
        }
        rate = times * load(config).learning_rate()
        config["training"]["learning_rate"] = rate
        luthier.train(config)
    from benchmarks.optimizers import Clock as Used  # the one that the run imported, not this program's

    return {
        "learning_rate": rate,
        "optimizer_ms": round(1000 * statistics.median(Used.optimizer_seconds[1:]), 1),
        "first_ms": round(1000 * Used.optimizer_seconds[0], 1),
        "step_ms": round(1000 * statistics.median(Used.step_seconds[1:]), 1),
        "state_mib": round(Used.state_bytes / 2**20, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "first_loss": round(statistics.mean(Used.losses[:4]), 3),
        "last_loss": round(statistics.mean(Used.losses[-4:]), 3),
    }


def main() -> int:
    from luthier.config.plugins import OPTIMIZERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--only", default=",".join(OPTIMIZERS.names()))
    parser.add_argument("--times", type=float, default=1.0)
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # this is the process that is measured
    options = parser.parse_args()
    names = options.only.split(",")
    if options.here:
        print(json.dumps(one(names[0], options.steps, options.times)))
        return 0
    found: dict[str, Any] = {}
    for name in names:
        command = [sys.executable, __file__, "--here", "--only", name]
        command += ["--steps", str(options.steps), "--times", str(options.times)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}", flush=True)
            continue
        found[name] = json.loads(done.stdout.splitlines()[-1])
        print(name, found[name], flush=True)
    if set(names) == set(OPTIMIZERS.names()) and options.times == 1.0:
        load_now = round(os.getloadavg()[0], 1)
        RESULTS.write_text(json.dumps({"steps": options.steps, "load": load_now, "optimizers": found}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
