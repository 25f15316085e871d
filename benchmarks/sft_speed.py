"""Supervised tuning, luthier beside transformers' Trainer: the same rows in the same order, in turn, as ratios.

    python benchmarks/sft_speed.py [--rounds 3] [--peer-script ../shared/bench/peer_trainer.py] [--data alpaca.json]

Both train LoRA r=8 on all linear layers of smollm2-135m for 8 steps of 4 rows, float32, AdamW, learning rate 1e-4
constant. Prints the ratio of real tokens per second (first step left out, it warms up) and of peak resident memory,
and the largest relative difference between the two curves of losses. Results go to benchmarks/results/sft_speed.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
ROWS, BATCH, STEPS, CUTOFF = 64, 4, 8, 512


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-script", type=Path, default=SHARED / "bench" / "peer_trainer.py")
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "instruct" / "alpaca_en_demo.json")
    parser.add_argument(
        "--ours", type=Path, help=argparse.SUPPRESS
    )  # this script again, as the process that is measured
    options = parser.parse_args()
    if options.ours:
        print(json.dumps(train_ours(options.ours)))
        return 0
    for needed in (options.peer_script, options.data):
        if not needed.exists():
            print(f"{needed} is not there: name the peer's script and its data with --peer-script and --data.")
            return 2
    from luthier.commands.models import fetch

    model = fetch("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder:
        rows_file = write_rows(options.data, Path(folder))
        ours = [sys.executable, __file__, "--ours", str(rows_file)]
        theirs = [
            sys.executable,
            str(options.peer_script),
            "--peer",
            "hf",
            "--model",
            str(model),
            "--data",
            str(options.data),
        ]
        theirs += ["--examples", str(ROWS), "--batch-size", str(BATCH), "--steps", str(STEPS), "--cutoff", str(CUTOFF)]
        rounds = []
        for number in range(options.rounds):
            pair = {"luthier": run(ours), "peer": run(theirs)}
            rounds.append(pair)
            print(f"round {number + 1}: {describe(pair)}", flush=True)
    result = summarize(rounds)
    print(json.dumps(result, indent=2))
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "sft_speed.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


def write_rows(data: Path, folder: Path) -> Path:
    """The rows that the peer takes, in its order."""
    rows = json.loads(data.read_text(encoding="utf-8"))
    random.Random(0).shuffle(rows)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows[:ROWS]), encoding="utf-8")
    return path


def run(command: list[str]) -> dict[str, Any]:
    """One process's JSON line."""
    done = subprocess.run(
        command, check=True, capture_output=True, text=True, env={**os.environ, "HF_HUB_OFFLINE": "1"}
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def train_ours(rows: Path) -> dict[str, Any]:
    """luthier's run, timed as the peer times its own: from the end of the first step to the end of the last."""
    import luthier

    with tempfile.TemporaryDirectory() as folder:
        config = {
            "model": "smollm2-135m",
            "data": {"train": str(rows), "cutoff_length": CUTOFF, "shuffle": False},
            "method": {"name": "lora", "rank": 8, "alpha": 16},
            "training": {
                "max_steps": STEPS, "per_device_train_batch_size": BATCH, "learning_rate": 1e-4, "seed": 0,
                "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
                "callbacks": ["benchmarks.step_clock.StepClock"],
            },
            "output_dir": folder + "/run",
        }  # fmt: skip
        sys.path.insert(0, str(ROOT))
        from benchmarks.step_clock import StepClock

        luthier.train(config)
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = StepClock.ends[-1] - StepClock.ends[0]
    tokens = sum(line["tokens"] for line in lines[1:])
    return {
        "peer": "luthier",
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds": round(seconds, 2),
        "tokens": tokens,
        "losses": [line["loss"] for line in lines],
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def describe(pair: dict[str, Any]) -> str:
    """One round in a line."""
    own, peer = pair["luthier"], pair["peer"]
    return (
        f"luthier {own['tokens_per_second']} tokens/s, {own['peak_rss_mib']} MiB; "
        f"peer {peer['tokens_per_second']} tokens/s, {peer['peak_rss_mib']} MiB; "
        f"ratio {own['tokens_per_second'] / peer['tokens_per_second']:.2f}"
    )


def summarize(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median ratios, and how far the losses are apart."""
    differences = [
        abs(own - peer) / abs(peer)
        for pair in rounds
        for own, peer in zip(pair["luthier"]["losses"], pair["peer"]["losses"], strict=True)
    ]
    return {
        "work": f"sft, smollm2-135m, LoRA r=8 all-linear, batch {BATCH}, {STEPS} steps, cutoff {CUTOFF}, float32",
        "machine": machine(),
        "speed_ratio": round(
            statistics.median(p["luthier"]["tokens_per_second"] / p["peer"]["tokens_per_second"] for p in rounds), 3
        ),
        "memory_ratio": round(
            statistics.median(p["luthier"]["peak_rss_mib"] / p["peer"]["peak_rss_mib"] for p in rounds), 3
        ),
        "largest_relative_loss_difference": max(differences),
        "rounds": rounds,
    }


def machine() -> dict[str, Any]:
    """Cores and the rate of float32 matrix products."""
    import torch

    from luthier.foundation.devices import cpu_name_and_flags, matmul_gflops

    return {
        "cpu": cpu_name_and_flags()[0],
        "threads": torch.get_num_threads(),
        "float32_gflops": round(matmul_gflops("float32", torch.device("cpu"), seconds=1.0)),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    sys.exit(main())
