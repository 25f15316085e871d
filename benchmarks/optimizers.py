"""Every optimizer's step and state, in turn; and, with --train, what each makes of smollm2-135m.

    python benchmarks/optimizers.py [--rounds 5]
    python benchmarks/optimizers.py --train 24 [--method lora] [--only lion,muon] [--times 1,3,10]

The first steps over all weights of a random Llama of smollm2-135m's width (576, 12 layers, 8,192 tokens, 47 million
weights) with random gradients. In each round every optimizer makes one step, so that all meet the same neighbours;
seconds are medians, and ratios are to AdamW's in the same round. galore's first step, in which it looks for its
subspaces, and which comes again every update_proj_gap steps, is told apart. State is what the optimizer keeps. Results go
to benchmarks/results/optimizers.json.

The second trains smollm2-135m on 88 of the identity rows, 2 a step, each optimizer in a process of its own at the rate
that luthier recommends for it with that method (full unless --method says another), times each of --times, and prints the
loss of the last six steps and that of the 12 rows that were held out.
"""

from __future__ import annotations

import argparse
import itertools
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
    held_out = 0.0

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
        if "eval_loss" in logs:
            Clock.held_out = logs["eval_loss"]


def one(name: str, steps: int, times: float, method: str) -> dict[str, Any]:
    """Train with one optimizer in this process."""
    import luthier
    from luthier.config.loading import load

    optim: dict[str, Any] = {"name": name}
    if name == "badam":
        optim["switch_block_every"] = max(1, steps // 32)  # a round over the 31 blocks
    with tempfile.TemporaryDirectory() as folder:
        config: dict[str, Any] = {
            "model": "smollm2-135m",
            "data": {"train": str(ROOT / "examples" / "identity" / "identity.jsonl"), "validation": 12},
            "method": method,
            "training": {
                "max_steps": steps,
                "per_device_train_batch_size": 2,
                "optim": optim,
                "logging_steps": 1,
                "eval_strategy": "steps",
                "eval_steps": steps,
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
        "learning_rate": float(f"{rate:.3g}"),
        "optimizer_ms": round(1000 * statistics.median(Used.optimizer_seconds[1:]), 1),
        "first_ms": round(1000 * Used.optimizer_seconds[0], 1),
        "step_ms": round(1000 * statistics.median(Used.step_seconds[1:]), 1),
        "state_mib": round(Used.state_bytes / 2**20, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "last_loss": round(statistics.mean(Used.losses[-6:]), 3),
        "held_out_loss": round(Used.held_out, 3),
    }


def step_alone(rounds: int, names: list[str]) -> dict[str, Any]:
    """Seconds and state of every optimizer over the same random model, in turn."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from luthier.config.loading import load
    from luthier.training.optimization import make_optimizer, to_training

    sizes = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 12, "vocab_size": 8192}
    heads = {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
    model = LlamaForCausalLM(LlamaConfig(**sizes, **heads))
    generator = torch.Generator().manual_seed(0)
    gradients = {p: torch.randn(p.shape, generator=generator) * 1e-3 for p in model.parameters()}
    optimizers = {}
    for name in names:
        config = load({"model": "m", "data": {"train": "a"}, "method": "full", "training": {"optim": name}})
        optimizers[name] = make_optimizer(config, model)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds + 1):
        for name, optimizer in optimizers.items():
            for parameter in model.parameters():
                parameter.requires_grad_(True)
            to_training(optimizer)
            for parameter, gradient in gradients.items():
                parameter.grad = gradient if parameter.requires_grad else None
            began = time.perf_counter()
            optimizer.step()
            seconds[name].append(time.perf_counter() - began)
    count = sum(parameter.numel() for parameter in model.parameters())
    found = {}
    for name, optimizer in optimizers.items():
        kept = {
            value.data_ptr(): value.nbytes
            for parts in optimizer.state.values()
            for value in parts.values()
            if hasattr(value, "data_ptr")
        }
        own, adamws = seconds[name][1:], seconds["adamw"][1:]
        found[name] = {
            "step_ms": round(1000 * statistics.median(own), 1),
            "first_step_ms": round(1000 * seconds[name][0], 1),
            "times_adamw": round(statistics.median(x / y for x, y in zip(own, adamws, strict=True)), 2),
            "state_mib": round(sum(kept.values()) / 2**20, 1),
            "state_bytes_per_parameter": round(sum(kept.values()) / count, 2),
        }
    return {"parameters": count, "rounds": rounds, "threads": torch.get_num_threads(), "optimizers": found}


def main() -> int:
    from luthier.config.plugins import OPTIMIZERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--train", type=int, default=0, metavar="STEPS", dest="steps")
    parser.add_argument("--only", default=",".join(OPTIMIZERS.names()))
    parser.add_argument("--method", default="full")
    parser.add_argument("--times", default="1", help="multiples of the recommended rate, with commas between")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)  # this is the process that is measured
    options = parser.parse_args()
    names = options.only.split(",")
    if options.here:
        print(json.dumps(one(names[0], options.steps, float(options.times), options.method)))
        return 0
    if not options.steps:
        result = {**step_alone(options.rounds, OPTIMIZERS.names()), "load": round(os.getloadavg()[0], 1)}
        for name, values in result["optimizers"].items():
            print(name, values)
        RESULTS.write_text(json.dumps(result, indent=2) + "\n")
        return 0
    for name, times in itertools.product(names, options.times.split(",")):
        command = [sys.executable, __file__, "--here", "--only", name, "--method", options.method]
        command += ["--train", str(options.steps), "--times", times]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
        if done.returncode:
            print(f"{name}: {done.stderr.strip().splitlines()[-1] if done.stderr else done.returncode}", flush=True)
            continue
        print(name, json.loads(done.stdout.splitlines()[-1]), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
