"""Speed of `luthier predict` beside transformers' own `generate`: the same Spider questions, the same model, in turn.

    python benchmarks/predict_speed.py [--prompts 200] [--new-tokens 48] [--rounds 2] [--shared ../shared]

A seeded sample of the development questions, each with its schema in sentences, rendered with the model's chat template;
smollm2-135m in float32, greedy. The peer's batch size is the best of several on the first prompts; its prompts are sorted
by length, so that it pads little. Then both answer all prompts in processes of their own, in turn. A side's seconds are
those from token ids to token ids, weights read before; with one thread the processor's own seconds are the ones that count
on a machine that others use too. Tokens are compared: where they differ, the gap between the two
largest logits there is given. Results go to benchmarks/results/predict.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"
MODEL = "smollm2-135m"
BATCH_SIZES = (8, 16, 32, 64)
TRIED_PROMPTS = 64  # on which the peer's batch size is chosen


def schema_sentences(table: dict[str, Any]) -> str:
    """A schema as sentences: its tables, each one's columns and key, the foreign keys."""
    names, columns = table["table_names_original"], table["column_names_original"]
    text = [f"{table['db_id']} contains tables such as {', '.join(names)}."]
    for number, name in enumerate(names):
        own = [column for of, column in columns if of == number]
        text.append(f"Table {name} has columns such as {', '.join(own)}.")
        text += [f"{columns[key][1]} is the primary key." for key in table["primary_keys"] if columns[key][0] == number]
    for here, there in table["foreign_keys"]:
        (of, column), (to, target) = columns[here], columns[there]
        text.append(f"The {column} of {names[of]} is the foreign key of {target} of {names[to]}.")
    return " ".join(text)


def prompt_ids(shared: Path, count: int) -> list[list[int]]:
    """Token ids of the prompts."""
    from luthier.config.schema import ModelConfig
    from luthier.data.records import Message
    from luthier.data.rendering import Renderer
    from luthier.model.loading import load_tokenizer

    data = shared / "data" / "text2sql"
    schemas = {t["db_id"]: schema_sentences(t) for t in json.loads((data / "tables.json").read_text(encoding="utf-8"))}
    questions = json.loads((data / "dev.json").read_text(encoding="utf-8"))
    renderer = Renderer(load_tokenizer(ModelConfig(name=MODEL)))
    chosen = random.Random(0).sample(questions, count)
    told = "I want you to act as a SQL terminal. Answer the question on this database with one query.\n"
    return [
        renderer.prompt_ids(
            [Message("user", f"{told}{schemas[row['db_id']]}\n###Input:\n{row['question']}\n\n###Response:")]
        )
        for row in chosen
    ]


def by_luthier(model: Any, tokenizer: Any, prompts: list[list[int]], new_tokens: int, stops: list[int]) -> list[Any]:
    from luthier.config.generation_section import GenerationSettings
    from luthier.scoring.decoding import generate

    settings = GenerationSettings(max_new_tokens=new_tokens)
    found = {
        one.row: list(one.token_ids) for one in generate(model, tokenizer, prompts, settings, stop_token_ids=stops)
    }
    return [found[row] for row in range(len(prompts))]


def by_transformers(
    model: Any, prompts: list[list[int]], new_tokens: int, stops: list[int], batch_size: int, pad: int
) -> list[Any]:
    """Sorted, padded on the left, as its documentation has it."""
    import torch

    order = sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    found: list[Any] = [None] * len(prompts)
    for start in range(0, len(order), batch_size):
        places = order[start : start + batch_size]
        longest = max(len(prompts[place]) for place in places)
        ids = torch.tensor([[pad] * (longest - len(prompts[place])) + prompts[place] for place in places])
        mask = torch.tensor([[0] * (longest - len(prompts[p])) + [1] * len(prompts[p]) for p in places])
        with torch.inference_mode():
            output = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, eos_token_id=stops, pad_token_id=pad
            )  # fmt: skip
        for place, row in zip(places, output[:, longest:].tolist(), strict=True):
            end = next((n for n, token in enumerate(row) if token in stops), len(row))
            found[place] = row[:end]
    return found


def side(arguments: argparse.Namespace) -> None:
    """One side in a process of its own: prints seconds and tokens."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from luthier.config.schema import ModelConfig
    from luthier.model.resolving import resolve

    folder = resolve(ModelConfig(name=MODEL))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    prompts = json.loads(Path(arguments.side_prompts).read_text(encoding="utf-8"))
    stops, new_tokens = [tokenizer.eos_token_id], arguments.new_tokens
    results = []
    for name in arguments.side.split(","):
        started, cpu_started = time.perf_counter(), time.process_time()
        if name == "luthier":
            found = by_luthier(model, tokenizer, prompts, new_tokens, stops)
        else:
            found = by_transformers(model, prompts, new_tokens, stops, int(name), tokenizer.pad_token_id)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu_started
        results.append(
            {
                "side": name,
                "seconds": round(seconds, 2),
                "cpu_seconds": round(cpu_seconds, 2),
                "threads": torch.get_num_threads(),
                "tokens": found,
            }
        )
    print(json.dumps(results))


def measure(names: str, prompts: list[list[int]], new_tokens: int) -> list[dict[str, Any]]:
    """Run one side, or several after each other, in a fresh process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "prompts.json"
        path.write_text(json.dumps(prompts), encoding="utf-8")
        command = [sys.executable, __file__, "--side", names, "--side-prompts", str(path)]
        done = subprocess.run(
            [*command, "--new-tokens", str(new_tokens)], capture_output=True, text=True, check=True, env=os.environ
        )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    for one in found:
        print(
            f"  {one['side']}: {one['seconds']:.1f} s, {one['cpu_seconds']:.1f} s of the processor",
            file=sys.stderr,
            flush=True,
        )
    return found


def differences(prompts: list[list[int]], ours: list[list[int]], theirs: list[list[int]], stop: int) -> list[float]:
    """Where the tokens differ: the gap between the two largest logits at the first place, by the model itself."""
    import torch
    from transformers import AutoModelForCausalLM

    from luthier.config.schema import ModelConfig
    from luthier.model.resolving import resolve

    model = AutoModelForCausalLM.from_pretrained(resolve(ModelConfig(name=MODEL)), dtype=torch.float32).eval()
    gaps = []
    for prompt, own, other in zip(prompts, ours, theirs, strict=True):
        if own == other:
            continue
        ended_own, ended_other = [*own, stop], [*other, stop]
        place = next(n for n, (a, b) in enumerate(zip(ended_own, ended_other, strict=False)) if a != b)
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([prompt + own[:place]]), logits_to_keep=1).logits[0, -1]
        first, second = logits.topk(2).values.tolist()
        gaps.append(first - second)
    return gaps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch-size", type=int, help="the peer's; unset: the best of several")
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "predict.json")
    parser.add_argument("--side", help=argparse.SUPPRESS)
    parser.add_argument("--side-prompts", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments)
        return
    sys.path.insert(0, str(ROOT))
    from benchmarks.training_speed import need

    need(arguments.shared / "data")
    prompts = prompt_ids(arguments.shared, arguments.prompts)
    tried: dict[str, float] = {}
    if arguments.batch_size is None:
        names = ",".join(map(str, BATCH_SIZES))
        found = measure(names, prompts[:TRIED_PROMPTS], arguments.new_tokens)
        tried = {one["side"]: one["cpu_seconds"] for one in found}
    best = str(arguments.batch_size) if arguments.batch_size else min(tried, key=lambda name: tried[name])
    seconds: dict[str, list[float]] = {"luthier": [], "transformers": []}
    cpu_seconds: dict[str, list[float]] = {"luthier": [], "transformers": []}
    for _ in range(arguments.rounds):
        (own,) = measure("luthier", prompts, arguments.new_tokens)
        (peer,) = measure(best, prompts, arguments.new_tokens)
        for name, one in (("luthier", own), ("transformers", peer)):
            seconds[name].append(one["seconds"])
            cpu_seconds[name].append(one["cpu_seconds"])
    from luthier.config.schema import ModelConfig
    from luthier.model.loading import load_tokenizer

    stop = load_tokenizer(ModelConfig(name=MODEL)).eos_token_id
    gaps = differences(prompts, own["tokens"], peer["tokens"], stop)

    def ratio(of: dict[str, list[float]]) -> float:
        both = zip(of["luthier"], of["transformers"], strict=True)
        return round(statistics.median(theirs / ours for ours, theirs in both), 3)

    result = {
        "prompts": len(prompts),
        "prompt_tokens": sum(map(len, prompts)),
        "new_tokens": arguments.new_tokens,
        "generated_tokens": sum(map(len, own["tokens"])),
        "threads": own["threads"],
        "peer_batch_size": int(best),
        "peer_cpu_seconds_by_batch_size": tried,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "ratio": ratio(seconds),
        "ratio_of_cpu_seconds": ratio(cpu_seconds),
        "answers_with_other_tokens": len(gaps),
        "largest_gap_of_logits_there": max(gaps, default=0.0),
    }
    arguments.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
