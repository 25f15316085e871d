"""Resident memory, speed and loss of LoRA beside a base in float32, 8 bits and 4 bits, each in a process of its own.

Prints a table in Markdown and writes benchmarks/results/quantization_memory.json. On a GPU the numbers would be others:
there the base lies in the device's memory, and this looks at the process's.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quantization_memory.json"
ROWS = ROOT / "examples" / "identity" / "identity.jsonl"
WAYS = ("none", "int8", "fp4", "nf4")
MIB = 1024**2


def resident() -> int:
    """Resident bytes of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)


def loaded(model: str, way: str) -> dict[str, Any]:
    """Bytes of the base once it is read, by the model's own count and by the process's."""
    import torch

    from luthier.config.schema import ModelConfig
    from luthier.model import loading
    from luthier.model.quantization import bitsandbytes

    bitsandbytes()
    import transformers.models.llama.modeling_llama  # noqa: F401 - what every way imports is not counted

    before = resident()
    chosen = ModelConfig.model_validate({"name": model, "quantization": None if way == "none" else way})
    began = time.perf_counter()
    read = loading.load(loading.find(chosen), torch.float32)
    if way == "none":  # it lies in the file's mapping until it is used: touch every page
        sum(float(weight.detach().flatten()[::512].sum()) for weight in read.parameters())
    return {
        "weights_bytes": read.get_memory_footprint(),
        "resident_bytes": resident() - before,
        "imports_bytes": before,
        "load_seconds": round(time.perf_counter() - began, 2),
    }


def trained(model: str, way: str, steps: int) -> dict[str, Any]:
    """A short run's peak memory, speed and losses."""
    import luthier

    with tempfile.TemporaryDirectory() as folder:
        result = luthier.train(
            {
                "model": {"name": model, "quantization": None if way == "none" else way},
                "data": {"train": str(ROWS), "cutoff_length": 128},
                "method": {"name": "lora", "rank": 8, "target_modules": ["q_proj", "v_proj"]},
                "training": {
                    "max_steps": steps,
                    "per_device_train_batch_size": 4,
                    "learning_rate": 1e-3,
                    "logging_steps": 1,
                    "save_strategy": "no",
                    "use_cpu": True,
                },
                "output_dir": f"{folder}/run",
            }
        )
        lines = [json.loads(line) for line in (Path(folder) / "run" / "metrics.jsonl").read_text().splitlines()]
    steady = lines[2:]  # the first steps allocate
    return {
        "peak_resident_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "tokens_per_second": round(sum(line["tokens"] for line in steady) / sum(line["seconds"] for line in steady), 1),
        "first_loss": lines[0]["loss"],
        "mean_of_the_last_losses": round(sum(line["loss"] for line in lines[-3:]) / 3, 4),
        "trainable_parameters": result.trainable_parameters,
    }


def in_a_child(*arguments: str) -> dict[str, Any]:
    """One measurement in a fresh process."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "WAY"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        what, way = given.child
        found = loaded(given.model, way) if what == "loaded" else trained(given.model, way, given.steps)
        print(json.dumps(found))
        return
    rows = {}
    for way in WAYS:
        common = ("--model", given.model, "--steps", str(given.steps), "--child")
        rows[way] = {**in_a_child(*common, "loaded", way), **in_a_child(*common, "trained", way)}
        print(f"{way}: {rows[way]}", file=sys.stderr)
    print("| base | weights, MB | resident once read, MB | peak in training, MiB | tokens/s | loss, first to last |")
    print("|---|---|---|---|---|---|")
    for way, row in rows.items():
        print(
            f"| {'float32' if way == 'none' else way} | {row['weights_bytes'] / 1e6:.0f} | {row['resident_bytes'] / 1e6:.0f} | "
            f"{row['peak_resident_bytes'] / MIB:.0f} | {row['tokens_per_second']:.0f} | "
            f"{row['first_loss']:.2f} to {row['mean_of_the_last_losses']:.2f} |"
        )
    RESULTS.write_text(json.dumps({"model": given.model, "load": os.getloadavg(), "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
