"""Preparing data, luthier beside TRL: the same rows rendered and tokenized, in turn, several rounds.

    python benchmarks/data_preparation.py [--rounds 3] [--rows 100000] [--data FOLDER]

The rows are those of FOLDER's alpaca files, repeated, each with its number in the question so that no two are equal and
none is read from a memo. luthier's time is all of `prepare`: reading the file, hashing it, rendering, tokenizing, counting,
writing the cache; then a second process that finds it there. TRL's time is `SFTTrainer._prepare_dataset` alone: reading
the file and turning rows into prompt and completion come before and are not counted. TRL gets as many processes as suit
it better, one or one a core, tried on a quarter of the rows first; its datasets cache is new in every round. Memory is the
largest sum of the proportional set sizes (PSS: shared pages counted once) of a process and all its children, sampled five
times a second. Seconds of the processors tell how much work it was, whoever else was computing. Results go to benchmarks/results/data_preparation.json.
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

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
FILES = ("alpaca_en_demo.json", "alpaca_zh_demo.json", "identity.json")
CUTOFF = 1024
SAMPLES_PER_SECOND = 5


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--data", type=Path, default=SHARED / "data" / "instruct")
    # this script again, as the process that is measured
    parser.add_argument("--side", choices=("luthier", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    parser.add_argument("--processes", type=int, default=0, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(prepare_ours(options.file) if options.side == "luthier" else prepare_trl(options)))
        return 0
    if not all((options.data / name).exists() for name in FILES):
        print(f"{options.data} lacks {', '.join(FILES)}: name a folder with --data.")
        return 2
    from luthier.commands.models import fetch

    fetch("smollm2-135m")
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(options.data, Path(folder) / "rows.jsonl", options.rows)
        few = write_rows(options.data, Path(folder) / "few.jsonl", options.rows // 4)
        trials = {count: measure("trl", few, count)["seconds"] for count in (1, os.cpu_count() or 1)}
        processes = min(trials, key=lambda count: trials[count])
        print(f"TRL on a quarter of the rows, seconds by processes: {trials}; it gets {processes}", flush=True)
        rounds = [one_round(rows, processes, number) for number in range(1, options.rounds + 1)]
    result = {
        "work": f"{options.rows:,} alpaca rows, smollm2-135m's tokenizer and template, loss on answers, cutoff {CUTOFF}",
        "machine": machine(),
        "trl_processes": processes,
        "trl_trials_seconds": trials,
        "seconds": {side: round(statistics.median(r[side]["seconds"] for r in rounds), 2) for side in rounds[0]},
        "peak_memory_mib": {side: max(r[side]["peak_memory_mib"] for r in rounds) for side in rounds[0]},
        "processor_seconds": {
            side: round(statistics.median(r[side]["processor_seconds"] for r in rounds), 2) for side in rounds[0]
        },
        "processor_ratio": round(
            statistics.median(r["trl"]["processor_seconds"] / r["luthier"]["processor_seconds"] for r in rounds), 2
        ),
        "speed_ratio": round(statistics.median(r["trl"]["seconds"] / r["luthier"]["seconds"] for r in rounds), 2),
        "rounds": rounds,
    }
    print(json.dumps({key: value for key, value in result.items() if key != "rounds"}, indent=2))
    (ROOT / "benchmarks" / "results").mkdir(exist_ok=True)
    (ROOT / "benchmarks" / "results" / "data_preparation.json").write_text(json.dumps(result, indent=2) + "\n")
    return 0


def write_rows(data: Path, path: Path, count: int) -> Path:
    """`count` rows, no two of them equal."""
    rows = [row for name in FILES for row in json.loads((data / name).read_text(encoding="utf-8"))]
    with path.open("w", encoding="utf-8") as stream:
        for number in range(count):
            row = rows[number % len(rows)]
            row = {**row, "instruction": f"({number}) {row['instruction']}"}
            stream.write(json.dumps(row, ensure_ascii=False) + "\n")
    return path


def one_round(rows: Path, processes: int, number: int) -> dict[str, Any]:
    """Both sides, each with caches of its own that are new; the other goes first in every second round."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as cache:
        os.environ["LUTHIER_DATA_CACHE"] = cache
        for side in ("luthier", "trl") if number % 2 else ("trl", "luthier"):
            found[side] = measure(side, rows, processes)
        found["luthier, second start"] = measure("luthier", rows, processes)
    for side, result in found.items():
        load = f"load {result['load_before']} before"
        used = f"{result['seconds']} s, {result['processor_seconds']} s of processors, {result['peak_memory_mib']} MiB"
        print(f"round {number}: {side}: {used}, {load}", flush=True)
    counts = {(result["rows"], result["tokens"]) for side, result in found.items() if side != "trl"}
    assert len(counts) == 1, counts
    return {side: found[side] for side in ("luthier", "luthier, second start", "trl")}


def measure(side: str, rows: Path, processes: int) -> dict[str, Any]:
    """One process's result, with its largest memory."""
    import psutil

    before = round(os.getloadavg()[0], 2)
    command = [sys.executable, __file__, "--side", side, "--file", str(rows), "--processes", str(processes)]
    with (
        tempfile.TemporaryDirectory() as datasets_cache,
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as said,
    ):
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": datasets_cache, "WORK": datasets_cache}
        process = subprocess.Popen(command, stdout=out, stderr=said, env=environment)
        peak = 0
        while process.poll() is None:
            peak = max(peak, memory_of_tree(psutil.Process(process.pid)))
            time.sleep(1 / SAMPLES_PER_SECOND)
        if process.returncode:
            said.seek(0)
            raise SystemExit(said.read())
        out.seek(0)
        result: dict[str, Any] = json.loads(out.read().strip().splitlines()[-1])
    return {**result, "peak_memory_mib": round(peak / 1024), "load_before": before}


def memory_of_tree(process: Any) -> int:
    """KiB of a process and its children, shared pages counted once."""
    import psutil

    total = 0
    try:
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    for member in tree:
        try:
            lines = Path(f"/proc/{member.pid}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue  # it has ended
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


class Clock:
    """Seconds from now on: of the clock on the wall, and of the processors, ended children's included."""

    def __init__(self) -> None:
        self._wall, self._processor = time.perf_counter(), self._used()

    def read(self) -> dict[str, float]:
        """Seconds since the start."""
        taken = {"seconds": time.perf_counter() - self._wall, "processor_seconds": self._used() - self._processor}
        return {name: round(value, 2) for name, value in taken.items()}

    @staticmethod
    def _used() -> float:
        found = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(usage.ru_utime + usage.ru_stime for usage in found)


def prepare_ours(file: str) -> dict[str, Any]:
    """luthier's preparation, from the file to the cache; or from the cache, where it is there."""
    from luthier.commands.opening import open_tokenizer
    from luthier.config.loading import load
    from luthier.data.preparing import prepare
    from luthier.model import loading

    config = load({"model": "smollm2-135m", "data": {"train": file, "cutoff_length": CUTOFF}})
    source = loading.find(config.model)
    model_config = loading.config_at(source.base, trust_remote_code=False)
    tokenizer, _, renderer = open_tokenizer(config.data, source, model_config, encoder="conversation")
    clock = Clock()
    prepared = prepare(config, tokenizer, renderer=renderer)
    return {**clock.read(), "rows": len(prepared.train), "tokens": prepared.train.tokens}


def prepare_trl(options: argparse.Namespace) -> dict[str, Any]:
    """TRL's own preparation, called by its trainer for a model that costs nothing."""
    from datasets import load_dataset
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    from luthier.commands.models import fetch

    processes = options.processes if options.processes > 1 else None

    def as_turns(row: dict[str, str]) -> dict[str, Any]:
        question = row["instruction"] + (f"\n{row['input']}" if row["input"] else "")
        return {
            "prompt": [{"role": "user", "content": question}],
            "completion": [{"role": "assistant", "content": row["output"]}],
        }

    class Timed(SFTTrainer):  # type: ignore[misc]
        taken: dict[str, float] = {}  # noqa: RUF012 - of the only one there is

        def _prepare_dataset(self, *args: Any, **kwargs: Any) -> Any:
            clock = Clock()
            prepared = super()._prepare_dataset(*args, **kwargs)
            Timed.taken = clock.read()
            return prepared

    tokenizer = AutoTokenizer.from_pretrained(fetch("smollm2-135m"))
    rows = load_dataset("json", data_files=options.file, split="train")
    rows = rows.map(as_turns, remove_columns=rows.column_names, num_proc=processes)
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **size))
    settings = SFTConfig(
        output_dir=os.environ["WORK"],
        max_length=CUTOFF,
        dataset_num_proc=processes,
        bf16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        report_to=[],
    )
    trainer = Timed(model, settings, train_dataset=rows, processing_class=tokenizer)
    prepared = trainer.train_dataset.with_format("numpy")
    tokens = sum(len(ids) for batch in prepared.iter(1000) for ids in batch["input_ids"])
    return {**Timed.taken, "rows": len(prepared), "tokens": tokens}


def machine() -> dict[str, Any]:
    """What it ran on."""
    from luthier.foundation.devices import cpu_name_and_flags

    return {
        "cpu": cpu_name_and_flags()[0],
        "cores": os.cpu_count(),
        "date": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    sys.exit(main())
