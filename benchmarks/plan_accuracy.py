"""How near `luthier plan` comes to what a run takes: peak resident memory and tokens per second, config by config.

    python benchmarks/plan_accuracy.py [--data alpaca.json] [--only "lora; full, sgd"] [--part 1/3]

Each config is planned in a process of its own and then trained for a few steps in another one, so that the machine is
the same and neither finds the other's memory. smollm2-135m, float32. What a process takes that only imports torch,
transformers and peft is measured too. Results are added to benchmarks/results/plan_accuracy.json, and the table of all that
stand there is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, ClassVar

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from benchmarks.step_clock import StepClock

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "plan_accuracy.json"
DATA = ROOT.parent / "shared" / "data" / "instruct" / "alpaca_en_demo.json"
STEPS = int(os.environ.get("STEPS", "5"))
CHECKPOINTING = "training.gradient_checkpointing=true"
CONFIGS: dict[str, list[str]] = {
    "full": ["method=full"],
    "full, checkpointing": ["method=full", CHECKPOINTING],
    "full, long rows": ["method=full", "stage=pretrain", "data.cutoff_length=768", "training.per_device_train_batch_size=2"],
    "freeze": ["method=freeze"],
    "lora": ["method=lora"],
    "lora, checkpointing": ["method=lora", CHECKPOINTING],
    "lora, batch 1 x 4": [
        "method=lora", "training.per_device_train_batch_size=1", "training.gradient_accumulation_steps=4",
    ],
    "lora, long rows": ["method=lora", "stage=pretrain", "data.cutoff_length=768", "training.per_device_train_batch_size=2"],
    "lora, long rows, checkpointing": [
        "method=lora", "stage=pretrain", "data.cutoff_length=768", "training.per_device_train_batch_size=2", CHECKPOINTING,
    ],
    "lora, q and v": ["method=lora", "method.target_modules=[q_proj, v_proj]"],
    "lora, padded route": ["method=lora", "model.attention=padded"],
    "qlora": ["method=lora", "model.quantization=nf4"],
    "qlora, checkpointing": ["method=lora", "model.quantization=nf4", CHECKPOINTING],
    "ia3": ["method=ia3"],
    "prompt_tuning": ["method=prompt_tuning"],
    "prompt_tuning, checkpointing": ["method=prompt_tuning", CHECKPOINTING],
    "prefix_tuning": ["method=prefix_tuning"],
    "full, sgd": ["method=full", "training.optim=sgd"],
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--only", default="", help="Names of configs, with semicolons between them.")
    parser.add_argument("--part", default="1/1", help="Which share of the configs, such as 2/3.")
    parser.add_argument("--side", choices=["plan", "train", "import"], help=argparse.SUPPRESS)
    parser.add_argument("--config", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(SIDES[options.side](json.loads(options.config)) if options.config else bare_import()))
        return 0
    if not options.data.exists():
        print(f"{options.data} is not there: name a file of Alpaca rows with --data.")
        return 2
    part, parts = map(int, options.part.split("/"))
    asked = [name.strip() for name in options.only.split(";")] if options.only else [*CONFIGS]
    if unknown := [name for name in asked if name not in CONFIGS]:
        print(f"--only names {unknown}, but the configs are: {'; '.join(CONFIGS)}.")
        return 2
    names = [name for name in CONFIGS if name in asked]
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"machine": {}, "configs": {}}
    results["machine"] = run_side("import", None)
    for name in names[part - 1 :: parts]:
        with tempfile.TemporaryDirectory() as folder:
            config = config_of(name, options.data, Path(folder))
            results["configs"][name] = {"plan": run_side("plan", config), "train": run_side("train", config)}
        print(row(name, results["configs"][name]), flush=True)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(results, indent=2) + "\n")
    print(
        "\n".join(["", *HEAD, *(row(name, results["configs"][name]) for name in CONFIGS if name in results["configs"])])
    )
    return 0


def config_of(name: str, data: Path, folder: Path) -> dict[str, Any]:
    """A run of a few steps, as settings and a file."""
    base = {
        "model": "smollm2-135m",
        "data": {"train": str(data), "cutoff_length": 512},
        "training": {
            "max_steps": STEPS, "per_device_train_batch_size": 4, "save_strategy": "no", "use_cpu": True,
            "logging_steps": 1,
        },
        "output_dir": str(folder / "run"),
    }  # fmt: skip
    settings = list(CONFIGS[name])
    if "stage=pretrain" in settings:  # blocks of equal length, every token trained
        texts = folder / "texts.jsonl"
        rows = json.loads(data.read_text(encoding="utf-8"))[:300]
        texts.write_text("".join(json.dumps({"text": f"{r['instruction']} {r['output']}"}) + "\n" for r in rows))
        settings.append(f"data.train={texts}")
    return {"base": base, "settings": settings}


def run_side(side: str, config: dict[str, Any] | None) -> dict[str, Any]:
    """One process's JSON line."""
    command = [sys.executable, __file__, "--side", side, *(["--config", json.dumps(config)] if config else [])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def bare_import() -> dict[str, Any]:
    """What the libraries alone take, and the machine."""
    import peft
    import torch
    import transformers

    taken = peak_mib()
    from luthier.foundation.devices import cpu_name_and_flags, matmul_gflops

    assert peft.__version__ and transformers.__version__
    return {
        "bare_import_mib": taken,
        "cpu": cpu_name_and_flags()[0],
        "threads": torch.get_num_threads(),
        "float32_gflops": round(matmul_gflops("float32", torch.device("cpu"), seconds=1.0)),
    }


def plan_side(config: dict[str, Any]) -> dict[str, Any]:
    """What the plan says."""
    from luthier.commands.plan import plan

    found = plan(config["base"], config["settings"]).plan
    assert found.memory is not None and found.time is not None
    return {
        "peak_mib": round(found.memory.peak / 2**20),
        "tokens_per_second": round(found.time.tokens_per_second, 1),
        "timed_share": round(found.time.measured_share, 3),
        "longest_batch_tokens": found.batch_tokens,
        "memory_mib": {name: round(size / 2**20) for name, size in found.memory.as_dict().items()},
    }


def train_side(config: dict[str, Any]) -> dict[str, Any]:
    """What the run takes; tokens per second from the end of the first step to the end of the last."""
    import luthier
    from benchmarks.plan_accuracy import (
        PeakOfTraining,
    )  # the class that the run's callback is, this file being __main__
    from luthier.config.loading import apply_override

    run = dict(config["base"])
    for setting in config["settings"]:
        apply_override(run, setting)
    run["training"]["callbacks"] = ["benchmarks.plan_accuracy.PeakOfTraining"]
    luthier.train(run)
    lines = [json.loads(line) for line in (Path(run["output_dir"]) / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "loss" in line]
    seconds = PeakOfTraining.ends[-1] - PeakOfTraining.ends[0]
    of_processor = PeakOfTraining.processor_ends[-1] - PeakOfTraining.processor_ends[0]
    tokens = sum(line["tokens"] for line in steps[1:])
    return {
        "peak_mib": peak_mib(),
        "loading_peak_mib": PeakOfTraining.loading_mib,
        "tokens_per_second": round(tokens / seconds, 1),
        "tokens_per_processor_second": round(tokens / of_processor, 1),
        "seconds_per_step": round(seconds / (len(steps) - 1), 3),
        "load": round(os.getloadavg()[0], 1),
        "date": time.strftime("%Y-%m-%d"),
    }


def peak_mib() -> int:
    """The process's largest resident memory so far."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return round(int(found[1]) / 1024)


class PeakOfTraining(StepClock):
    """Starts the peak anew when training begins: while a base is quantized, the file that its weights come from is mapped into
    memory, pages that the system takes back when it needs them."""

    loading_mib: ClassVar[int] = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        PeakOfTraining.loading_mib = peak_mib()
        Path("/proc/self/clear_refs").write_text("5")  # proc(5): the resident set's peak becomes what it is now


SIDES = {"plan": plan_side, "train": train_side}
HEAD = (
    "| config | planned MiB | measured MiB | off by | planned tokens/s | measured tokens/s | off by |",
    "|---|---|---|---|---|---|---|",
)


def row(name: str, found: dict[str, Any]) -> str:
    """One line of the table."""
    planned, measured = found["plan"], found["train"]
    memory = planned["peak_mib"] / measured["peak_mib"] - 1
    speed = planned["tokens_per_second"] / measured["tokens_per_second"] - 1
    return (
        f"| {name} | {planned['peak_mib']:,} | {measured['peak_mib']:,} | {memory:+.0%} | "
        f"{planned['tokens_per_second']:,.0f} | {measured['tokens_per_second']:,.0f} | {speed:+.0%} |"
    )


if __name__ == "__main__":
    sys.exit(main())
