"""Training the last two layers of smollm2-135m, luthier beside transformers' Trainer with the same layers trainable.

    python benchmarks/freeze_speed.py [--examples 256] [--epochs 5] [--rounds 1] [--shared ../shared]

Whole runs are compared, from the first step's beginning to the last one's end, luthier's with the states below the trained
layers computed first. The same rows in the same order, batches of 4, float32, AdamW, learning rate 1e-4 constant. Prints the
ratio and how far the losses are apart; results go to benchmarks/results/freeze.json.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
BATCH, CUTOFF, LAYERS = 4, 512, 2


def main() -> int:
    from benchmarks.training_speed import SHARED, alpaca_rows, machine, machine_rate, need, run

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=256)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--shared", type=Path, default=SHARED)
    # this script again, as the process that is measured
    parser.add_argument("--side", choices=["luthier", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        side = train_ours if options.side == "luthier" else train_peer
        print(json.dumps(side(options.rows, options.epochs)))
        return 0
    need(options.shared / "data")
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        _, rows = alpaca_rows(options.examples)(options.shared, Path(folder))
        command = [sys.executable, __file__, "--rows", str(rows), "--epochs", str(options.epochs), "--side"]
        for number in range(options.rounds):
            pair = {
                "float32_gflops": machine_rate(), "luthier": run([*command, "luthier"]), "peer": run([*command, "peer"])
            }  # fmt: skip
            rounds.append(pair)
            print(f"round {number + 1}: {pair['peer']['seconds'] / pair['luthier']['seconds']:.2f}", flush=True)
    apart = [
        abs(own - peer) / peer
        for pair in rounds
        for own, peer in zip(pair["luthier"]["losses"], pair["peer"]["losses"], strict=True)
    ]
    result = {
        "work": f"freeze: smollm2-135m, last {LAYERS} layers, {options.examples} rows, {options.epochs} epochs, batch {BATCH}",
        "machine": machine(),
        "load_after": round(os.getloadavg()[0], 1),
        "ratio": round(statistics.median(pair["peer"]["seconds"] / pair["luthier"]["seconds"] for pair in rounds), 3),
        "memory_ratio": round(
            statistics.median(pair["luthier"]["peak_rss_mib"] / pair["peer"]["peak_rss_mib"] for pair in rounds), 3
        ),
        "largest_relative_loss_difference": max(apart),
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))
    (ROOT / "benchmarks" / "results" / "freeze.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def train_ours(rows: Path, epochs: int) -> dict[str, Any]:
    """luthier's run; `seconds` count what is computed before the first step too."""
    from unittest.mock import patch

    import luthier
    from benchmarks.step_clock import StepClock
    from luthier.commands import precomputed

    began: list[float] = []
    make = precomputed.make_trunk

    def noted(*arguments: Any) -> Any:
        began.append(time.perf_counter())
        return make(*arguments)

    with tempfile.TemporaryDirectory() as folder, patch.object(precomputed, "make_trunk", noted):
        config = {
            "model": "smollm2-135m",
            "data": {"train": str(rows), "cutoff_length": CUTOFF, "shuffle": False},
            "method": {"name": "freeze", "trainable_layers": LAYERS},
            "training": {
                "num_train_epochs": epochs, "per_device_train_batch_size": BATCH, "learning_rate": 1e-4, "seed": 0,
                "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
                "callbacks": ["benchmarks.step_clock.StepClock"],
            },
            "output_dir": f"{folder}/run",
        }  # fmt: skip
        luthier.train(config)
        lines = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    return _result(StepClock.ends[-1] - began[0], [line["loss"] for line in lines])


def train_peer(rows: Path, epochs: int) -> dict[str, Any]:
    """transformers' Trainer on the same tokens, padded, with the same layers trainable."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, DataCollatorForSeq2Seq, Trainer, TrainingArguments

    from benchmarks.step_clock import StepClock
    from luthier.commands.models import fetch

    folder = fetch("smollm2-135m")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.requires_grad_(False)
    for layer in model.model.layers[-LAYERS:]:
        layer.requires_grad_(True)
    examples = []
    for row in json.loads(rows.read_text(encoding="utf-8")):
        question = row["instruction"] + ("\n" + row["input"] if row.get("input") else "")
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
        )
        asked = tokenizer(prompt, add_special_tokens=False).input_ids
        answer = tokenizer(row["output"] + tokenizer.eos_token, add_special_tokens=False).input_ids
        labels = [-100] * len(asked) + answer
        examples.append({"input_ids": (asked + answer)[:CUTOFF], "labels": labels[:CUTOFF]})

    class InOrder(Trainer):
        def _get_train_sampler(self, *arguments: Any, **named: Any) -> Any:
            return torch.utils.data.SequentialSampler(self.train_dataset)

    losses: list[float] = []

    class Losses(StepClock):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if "loss" in logs:
                losses.append(float(logs["loss"]))

    with tempfile.TemporaryDirectory() as out:
        arguments = TrainingArguments(
            output_dir=out, per_device_train_batch_size=BATCH, num_train_epochs=epochs, learning_rate=1e-4,
            lr_scheduler_type="constant", logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, seed=0,
            disable_tqdm=True, bf16=False,
        )  # fmt: skip
        collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)
        trainer = InOrder(
            model=model, args=arguments, train_dataset=examples, data_collator=collator, callbacks=[Losses()]
        )
        began = time.perf_counter()
        trainer.train()
    return _result(StepClock.ends[-1] - began, losses)


def _result(seconds: float, losses: list[float]) -> dict[str, Any]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"seconds": round(seconds, 2), "losses": losses, "peak_rss_mib": round(peak)}


if __name__ == "__main__":
    sys.exit(main())
