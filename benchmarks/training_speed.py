"""Training speed: luthier beside the library a user would otherwise pick, the same rows in the same order, in turn.

    python benchmarks/training_speed.py sft [--rounds 3] [--peer-script ../shared/bench/peer_trainer.py] [--shared ../shared]
        [--instructions avx2]

Works:
    sft                Alpaca rows, batches of 4, beside transformers' Trainer
    sft-trl            the same beside TRL's SFTTrainer
    sft-bf16           as sft, both sides under autocast in bfloat16: for processors that have tiles for it
    text2sql           256 Spider questions, each with its schema, in batches of 8 as sampled, beside transformers' Trainer
    text2sql-grouped   the same with training.grouping: within_buffer, which puts questions on one schema into one step
    dpo                12 preference pairs in batches of 2, 3 epochs, beside TRL's DPOTrainer
    dpo-precomputed    the same, TRL's reference computed once beforehand too
    scaling            256 rows beside 64 rows of luthier's own: how much longer they take

All train LoRA r=8 on all linear layers of smollm2-135m, in float32 where nothing else is said, AdamW, learning rate 1e-4 constant. Tokens per second
count the rows' real tokens, the first step left out (it warms up). Prints medians of the rounds' ratios and how far the
losses are apart; results go to benchmarks/results/WORK.json with the rate of the machine's own matrix product. With --instructions avx2 both sides
and the matrix product keep to AVX2, as on processors without AVX-512, and the file is WORK-avx2.json.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
# what tells MKL, torch and oneDNN to keep to AVX2; all three read it when they are loaded
AVX2 = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"}
# The arithmetic that is needed: of every token that is computed (what sequences share counts once) two operations for each
# weight of a linear layer, forward and for the gradient of the layer's input, and three times two for each of LoRA's; the
# head's for every target; in each layer 12 for each number of a token's width and each token that it attends to (two
# products forward, four backward). Scores and logits are not counted twice where they are made again. Not needed, so not
# counted: the gradient of what enters the first layer, and of the last layer all but keys and values for tokens that no
# loss looks at.
LAYER_WEIGHTS, LORA_WEIGHTS, HEAD_WEIGHTS, LAYERS_TIMES_WIDTH = 106_168_320, 2_442_240, 49_152 * 576, 30 * 576
KEYS_AND_VALUES = 2 * 192 * 576
QUERIES_KEYS_VALUES = 576 * 576 + KEYS_AND_VALUES


@dataclass(frozen=True)
class Work:
    """What both sides train.

    Args:
        rows: writes the peer's data file, and luthier's, into a folder; returns both.
        peer: the --peer of the script, or None where luthier is measured beside itself.
        steps, peer_steps: of each side; rates are compared where they differ.
        training: luthier's further settings.
        through: the script of this folder that runs the peer's script, with other settings than its own.
    """

    rows: Callable[[Path, Path], tuple[Path, Path]]
    peer: str | None
    batch: int
    steps: int
    peer_steps: int
    examples: int
    cutoff: int
    stage: str = "sft"
    training: dict[str, Any] = field(default_factory=dict)
    through: str = ""


def alpaca_rows(count: int) -> Callable[[Path, Path], tuple[Path, Path]]:
    """The first rows of the shuffle that the peer's script makes."""

    def write(shared: Path, folder: Path) -> tuple[Path, Path]:
        source = shared / "data" / "instruct" / "alpaca_en_demo.json"
        return source, _shuffled(source, folder, count)

    return write


def spider_rows(shared: Path, folder: Path) -> tuple[Path, Path]:
    """A seeded sample of Spider's questions as Alpaca rows, the schema in the instruction."""
    data = shared / "data" / "text2sql"
    schemas = {
        table["db_id"]: _schema(table) for table in json.loads((data / "tables.json").read_text(encoding="utf-8"))
    }
    questions = json.loads((data / "train_spider_min.json").read_text(encoding="utf-8"))
    rows = [
        {"instruction": f"{schemas[row['db_id']]}\n{row['question']}", "input": "", "output": row["query"]}
        for row in random.Random(0).sample(questions, 256)
    ]
    source = folder / "spider.json"
    source.write_text(json.dumps(rows), encoding="utf-8")
    return source, _shuffled(source, folder, len(rows))


def _schema(table: dict[str, Any]) -> str:
    names = table["table_names_original"]
    columns = [
        ", ".join(column for owner, column in table["column_names_original"] if owner == number)
        for number in range(len(names))
    ]
    parts = [f"Table {name} has columns such as {listed}." for name, listed in zip(names, columns, strict=True)]
    return f"{table['db_id']} contains tables such as {', '.join(names)}. {' '.join(parts)}"


def _shuffled(source: Path, folder: Path, count: int) -> Path:
    rows = json.loads(source.read_text(encoding="utf-8"))
    random.Random(0).shuffle(rows)
    path = folder / "rows.json"
    path.write_text(json.dumps(rows[:count]), encoding="utf-8")
    return path


def preference_pairs(shared: Path, folder: Path) -> tuple[Path, Path]:
    """The first pairs, as they are."""
    source = shared / "data" / "preference" / "dpo_en_demo.json"
    path = folder / "pairs.json"
    path.write_text(json.dumps(json.loads(source.read_text(encoding="utf-8"))[:12]), encoding="utf-8")
    return source, path


GROUPED = {"grouping": "within_buffer", "grouping_buffer_size": 256}
WORKS = {
    "sft": Work(alpaca_rows(64), "hf", 4, 8, 8, 64, 512),
    "sft-trl": Work(alpaca_rows(64), "trl", 4, 8, 8, 64, 512),
    "sft-bf16": Work(alpaca_rows(64), "hf", 4, 8, 8, 64, 512, training={"bf16": True}, through="peer_in_bf16.py"),
    # the peer's eighth batch, padded to 8 rows of 1,024 tokens, takes more than 24 GiB
    "text2sql": Work(spider_rows, "hf", 8, 7, 7, 256, 1024),
    "text2sql-grouped": Work(spider_rows, "hf", 8, 32, 7, 256, 1024, training=GROUPED),
    "dpo": Work(preference_pairs, "trl-dpo", 2, 18, 18, 12, 1024, stage="dpo"),
    "dpo-precomputed": Work(
        preference_pairs, "trl-dpo", 2, 18, 18, 12, 1024, stage="dpo", through="peer_precomputing.py"
    ),
    "scaling": Work(alpaca_rows(256), None, 4, 65, 17, 256, 512),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", default="sft", choices=WORKS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--peer-script", type=Path, default=SHARED / "bench" / "peer_trainer.py")
    parser.add_argument("--instructions", choices=["all", "avx2"], default="all")
    # this script again, as the process that is measured
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    work = WORKS[options.work]
    if options.rows:
        print(json.dumps(train_ours(work, options.rows, options.steps)))
        return 0
    need(options.peer_script, options.shared / "data")
    if options.instructions == "avx2":
        os.environ.update(AVX2)
    from luthier.commands.models import fetch

    model = fetch("smollm2-135m")
    rounds = []
    with tempfile.TemporaryDirectory() as name:
        source, rows = work.rows(options.shared, Path(name))
        ours = [sys.executable, __file__, options.work, "--rows", str(rows), "--steps"]
        before = [str(ROOT / "benchmarks" / work.through)] if work.through else []
        theirs = [sys.executable, *before, str(options.peer_script), "--peer", str(work.peer), "--model", str(model)]
        theirs += ["--data", str(source), "--examples", str(work.examples), "--batch-size", str(work.batch)]
        theirs += ["--steps", str(work.peer_steps), "--cutoff", str(work.cutoff)]
        for number in range(options.rounds):
            before_it = machine_rate()
            own = run([*ours, str(work.steps)])
            rate = round((before_it + machine_rate()) / 2)
            peer = run(theirs) if work.peer else run([*ours, str(work.peer_steps)])
            rounds.append({"luthier": own, "peer": peer, "float32_gflops": rate})
            print(f"round {number + 1}: {describe(rounds[-1])}", flush=True)
    result = summarize(options.work, work, rounds)
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    suffix = "" if options.instructions == "all" else f"-{options.instructions}"
    path = ROOT / "benchmarks" / "results" / f"{options.work}{suffix}.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0


def need(*paths: Path) -> None:
    """End the script where something that it measures with is not there."""
    missing = [str(path) for path in paths if not path.exists()]
    if missing:
        found = "; ".join(missing)
        print(
            f"{found}: not there. --shared names the data's folder, --peer-script the peer's script where there is one."
        )
        raise SystemExit(2)


def run(command: list[str]) -> dict[str, Any]:
    """One process's JSON line."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    )
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def train_ours(work: Work, rows: Path, steps: int) -> dict[str, Any]:
    """luthier's run, timed as the peer times its own: from the end of the first step to the end of the last."""
    sys.path.insert(0, str(ROOT))
    import luthier
    from benchmarks.step_clock import StepClock
    from luthier.training.reference import Reference

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["LUTHIER_DATA_CACHE"] = str(folder / "cache")
        seconds_of_reference = _timed(Reference, folder)
        counted = _counted()
        config = {
            "model": "smollm2-135m",
            "data": {"train": str(rows), "cutoff_length": work.cutoff, "shuffle": False},
            "stage": work.stage,
            "method": {"name": "lora", "rank": 8, "alpha": 16},
            "training": {
                "max_steps": steps, "per_device_train_batch_size": work.batch, "learning_rate": 1e-4, "seed": 0,
                "lr_scheduler_type": "constant", "logging_steps": 1, "save_strategy": "no",
                "callbacks": ["benchmarks.step_clock.StepClock"], **work.training,
            },
            "output_dir": str(folder / "run"),
        }  # fmt: skip
        luthier.train(config)
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    seconds = StepClock.ends[-1] - StepClock.ends[0]
    tokens = sum(line["tokens"] for line in lines[1:])
    return {
        "peer": "luthier",
        "tokens_per_second": round(tokens / seconds, 1),
        "seconds": round(seconds, 2),
        "seconds_of_reference": round(sum(seconds_of_reference), 2),
        "tokens": tokens,
        "targets": sum(line["targets"] for line in lines[1:]),
        "computed": sum(found[0] for found in counted[1:steps]),
        "attended": sum(found[1] for found in counted[1:steps]),
        "losses": [line["loss"] for line in lines],
        "step_tokens": [line["tokens"] for line in lines],
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
    }


def _counted() -> list[tuple[int, int]]:
    """Of each step that is drawn the tokens that are computed, and how many tokens these attend to together."""
    import torch

    from luthier.scoring.segmented import computed
    from luthier.training import feeds

    found: list[tuple[int, int]] = []
    pack_step = feeds.pack_step

    def counted(*arguments: Any) -> Any:
        batches = pack_step(*arguments)
        tokens = attended = 0
        for batch in batches:
            _, kept = computed(batch, torch.unique(batch.source_positions_N).tolist())
            tokens += sum(map(len, kept))
            attended += sum(int((batch.position_ids_T[rows.start : rows.stop] + 1).sum()) for rows in kept)
        found.append((tokens, attended))
        return batches

    feeds.pack_step = counted
    return found


def _timed(reference: Any, folder: Path) -> list[float]:
    """Seconds of each computation of a reference, which is kept in a folder of this run's alone."""
    import luthier.training.reference as module

    seconds: list[float] = []
    compute = reference._compute

    def timed(self: Any, *arguments: Any) -> Any:
        began = time.perf_counter()
        found = compute(self, *arguments)
        seconds.append(time.perf_counter() - began)
        return found

    reference._compute = timed
    module.reference_folder = lambda: folder / "references"
    return seconds


def ratio(pair: dict[str, Any]) -> float:
    """How many times faster: of rates; for preference stages of all steps but the first, the reference's time included."""
    own, peer = pair["luthier"], pair["peer"]
    if own["seconds_of_reference"]:
        whole = peer["seconds"] + peer.get("seconds_of_reference", 0.0)
        return float(whole / (own["seconds"] + own["seconds_of_reference"]))
    return float(own["tokens_per_second"] / peer["tokens_per_second"])


def describe(pair: dict[str, Any]) -> str:
    """One round in a line."""
    own, peer = pair["luthier"], pair["peer"]
    if own["seconds_of_reference"]:  # the peer's rate would be of one pass only
        told = [f"{side['seconds'] + side.get('seconds_of_reference', 0.0):.1f} s" for side in (own, peer)]
    else:
        told = [f"{side['tokens_per_second']} tokens/s" for side in (own, peer)]
    return (
        f"luthier {told[0]}, {own['peak_rss_mib']} MiB; "
        f"{peer['peer']} {told[1]}, {peer['peak_rss_mib']} MiB; ratio {ratio(pair):.2f}"
    )


def machine() -> dict[str, Any]:
    """What a result was measured on."""
    import torch

    from luthier.foundation.devices import cpu_name_and_flags

    return {
        "cpu": cpu_name_and_flags()[0],
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "date": time.strftime("%Y-%m-%d"),
    }


def machine_rate() -> int:
    """GFLOP/s of float32 matrix products at this moment."""
    import torch

    from luthier.foundation.devices import matmul_gflops

    return round(matmul_gflops("float32", torch.device("cpu"), seconds=1.0))


def needed_gflops(own: dict[str, Any]) -> float:
    """Billions of operations a second that the work truly needs, see above."""
    operations = (4 * LAYER_WEIGHTS + 6 * LORA_WEIGHTS) * own["computed"] + 4 * HEAD_WEIGHTS * own["targets"]
    operations += 12 * LAYERS_TIMES_WIDTH * own["attended"]
    operations -= 2 * QUERIES_KEYS_VALUES * own["computed"]
    operations -= 4 * (LAYER_WEIGHTS / 30 - KEYS_AND_VALUES) * (own["computed"] - own["targets"])
    return float(operations / own["seconds"] / 1e9)


def summarize(name: str, work: Work, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Median ratios, and how far the losses are apart where both sides see the same steps."""
    same = work.peer is not None and "grouping" not in work.training
    differences = [
        abs(own - peer) / abs(peer)
        for pair in (rounds if same else ())
        for own, peer in zip(pair["luthier"]["losses"], pair["peer"]["losses"], strict=True)
    ]

    def median(of: Callable[[dict[str, Any]], float]) -> float:
        return round(statistics.median(map(of, rounds)), 3)

    return {
        "work": f"{name}: smollm2-135m, LoRA r=8 all-linear, batch {work.batch}, {work.steps} steps, cutoff {work.cutoff}, "
        + ("bfloat16 autocast" if work.training.get("bf16") else "float32"),
        "machine": machine(),
        "load_after": round(os.getloadavg()[0], 1),
        "ratio": median(ratio),
        "memory_ratio": median(lambda pair: pair["luthier"]["peak_rss_mib"] / pair["peer"]["peak_rss_mib"]),
        # each by itself: a rate that something disturbed for its two seconds says nothing of the run beside it
        "share_of_matrix_product_rate": None
        if work.training.get("bf16")
        else round(
            median(lambda pair: needed_gflops(pair["luthier"])) / median(lambda pair: pair["float32_gflops"]), 3
        ),
        "largest_relative_loss_difference": max(differences) if same else None,
        # of the work scaling: how much longer a token takes in the longer run
        **({} if work.peer else {"times_as_long": median(lambda pair: 1 / ratio(pair))}),
        "rounds": rounds,
    }


if __name__ == "__main__":
    sys.exit(main())
