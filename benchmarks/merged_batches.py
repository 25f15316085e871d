"""What `training.tokens_per_batch: auto` gives: processor seconds and peak memory of the same steps, merged and row by row.

    python benchmarks/merged_batches.py [--data alpaca.json] [--budget GIB] [SETTING ...]

smollm2-135m, LoRA, steps of 8 rows in batches of one. Both sides train the same steps, each in a process of its own; the
first step is left out. Processor time, since the machine may have other work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.plan_accuracy import DATA, ROOT, STEPS, peak_mib

TAKEN = ("tokens", "peak_bytes", "budget_bytes")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--budget", type=float, help="training.memory_budget_gib; unset: what is free.")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("settings", nargs="*", help="Further settings of both sides, such as method=full.")
    options = parser.parse_args()
    if options.side:
        print(json.dumps(train_side(json.loads(options.side), options.settings)))
        return 0
    found = {}
    for name, tokens in (("row by row", None), ("merged", "auto")):
        with tempfile.TemporaryDirectory() as folder:
            config = config_of(options.data, Path(folder), tokens, options.budget)
            command = [sys.executable, __file__, "--side", json.dumps(config), *options.settings]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=ROOT)
            found[name] = json.loads(done.stdout.strip().splitlines()[-1])
        print(name, json.dumps(found[name]), flush=True)
    alone, merged = found["row by row"], found["merged"]
    differences = [abs(a - b) / abs(a) for a, b in zip(alone["losses"], merged["losses"], strict=True)]
    print(
        f"{alone['processor_seconds'] / merged['processor_seconds']:.2f} times fewer processor seconds; "
        f"losses differ by {max(differences):.1e} at most"
    )
    return 0


def config_of(data: Path, folder: Path, tokens: str | None, budget: float | None) -> dict[str, Any]:
    """Some steps of eight rows."""
    training = {
        "max_steps": STEPS, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 8, "tokens_per_batch": tokens,
        "save_strategy": "no", "use_cpu": True, "logging_steps": 1,
        "callbacks": ["benchmarks.plan_accuracy.PeakOfTraining"],
    }  # fmt: skip
    if tokens:
        training["memory_budget_gib"] = budget
    return {
        "model": "smollm2-135m",
        "data": {"train": str(data), "cutoff_length": 512},
        "training": training,
        "output_dir": str(folder / "run"),
    }


def train_side(config: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """What one side's steps take."""
    import luthier
    from benchmarks.plan_accuracy import PeakOfTraining  # the class that the run's callback is
    from luthier.config.loading import apply_override

    for setting in settings:
        apply_override(config, setting)
    luthier.train(config)
    run = Path(config["output_dir"])
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    batches = json.loads((run / "run.json").read_text())["batches"]
    ends = PeakOfTraining.processor_ends
    return {
        "processor_seconds": round(ends[-1] - ends[0], 2),
        "tokens_trained": sum(line["tokens"] for line in lines[1:]),
        "peak_mib": peak_mib(),
        "losses": [line["loss"] for line in lines],
        **{name: batches[name] for name in TAKEN if batches},
    }


if __name__ == "__main__":
    sys.exit(main())
