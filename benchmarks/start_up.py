"""How long `luthier train` takes to its first step, beside a process that only imports the same libraries, in turn.

    python benchmarks/start_up.py [--rounds 5] [--shared ../shared]

The run trains LoRA on smollm2-135m with Alpaca rows that are in the cache already; the time is that from the start of the
process to the beginning of step 1. The process beside it imports what the run had imported by then of other people's
packages, timed to its last import. `luthier --help` is timed too. Seconds by the clock, so nothing else should be running; results go to
benchmarks/results/start_up.json.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMPORTING = """
import importlib, json, sys, time
for name in json.load(open(sys.argv[1])):
    try:
        importlib.import_module(name)
    except ImportError:
        continue  # made by its package while that ran, not a file
print(time.time())
"""


def main() -> int:
    from benchmarks.training_speed import SHARED, WORKS, need

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shared", type=Path, default=SHARED)
    options = parser.parse_args()
    need(options.shared / "data")
    luthier = [str(Path(sys.executable).with_name("luthier"))]
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        _, rows = WORKS["sft"].rows(options.shared, folder)
        note, modules, config = folder / "note.json", folder / "modules.json", folder / "config.yaml"
        written = {
            "model": "smollm2-135m",
            "data": {"train": str(rows), "cutoff_length": 512},
            "method": "lora",
            "training": {"max_steps": 1, "save_strategy": "no", "callbacks": ["benchmarks.first_step.FirstStep"]},
            "output_dir": str(folder / "run"),
        }
        config.write_text(json.dumps(written), encoding="utf-8")
        environment = {**os.environ, "LUTHIER_FIRST_STEP": str(note), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
        environment["LUTHIER_DATA_CACHE"] = str(folder / "cache")
        for number in range(options.rounds + 1):
            began = time.time()
            command = [*luthier, "train", str(config), "--overwrite"]
            subprocess.run(command, check=True, env=environment, capture_output=True)
            noted = json.loads(note.read_text(encoding="utf-8"))
            modules.write_text(json.dumps(noted["modules"]), encoding="utf-8")
            importing = seconds_to_last_import([sys.executable, "-c", IMPORTING, str(modules)])
            helping = seconds([*luthier, "--help"])
            if number:  # the first fills the caches of rows, bytecode and files
                rounds.append({"first_step": noted["begun"] - began, "importing": importing, "help": helping})
                print({key: round(value, 2) for key, value in rounds[-1].items()}, flush=True)
    later = [each["first_step"] - each["importing"] for each in rounds]
    result = {
        "work": "LoRA on smollm2-135m, cached Alpaca rows: seconds from the start of a process",
        "first_step": round(statistics.median(each["first_step"] for each in rounds), 2),
        "importing": round(statistics.median(each["importing"] for each in rounds), 2),
        "later": round(statistics.median(later), 2),
        "help": round(statistics.median(each["help"] for each in rounds), 2),
        "load_after": round(os.getloadavg()[0], 1),
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))
    path = ROOT / "benchmarks" / "results" / "start_up.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def seconds_to_last_import(command: list[str]) -> float:
    """Of a process that prints the time then, without what its end takes."""
    began = time.time()
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    return float(done.stdout.split()[-1]) - began


def seconds(command: list[str]) -> float:
    """Of a process, from its start to its end."""
    began = time.time()
    subprocess.run(command, check=True, capture_output=True)
    return time.time() - began


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    sys.exit(main())
