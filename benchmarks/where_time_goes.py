"""Where the time of a training step goes: luthier beside transformers' Trainer, the same rows in the same order.

    python benchmarks/where_time_goes.py [--peer-script ../shared/bench/peer_trainer.py] [--shared ../shared]

Three steps of the work `sft` of training_speed.py are recorded by torch's profiler on each side, after two that warm up.
Every operator's own time is counted under what it is for; what no operator takes is Python's. Prints seconds for 1,000 of
the rows' tokens, writes benchmarks/results/where_time_goes.json and draws docs/images/where_time_goes.png.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import runpy
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import TrainerCallback

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
FIRST, LAST = 2, 5
# the first that an operator's name matches; all are names of torch's, or of compiled kernels
KINDS = {
    "matrix products": r"aten::(addmm|mm|bmm|baddbmm|linear|matmul)_?$",
    "attention": r"scaled_dot_product|luthier::forest_attention",
    "softmax of the logits": r"luthier::exponentiate|aten::(_?log_?softmax|_softmax|nll_loss|logsumexp|exp_?$|amax|max|gather)",
    "copies and memory": r"aten::(copy|cat|fill|zero|empty|clone|contiguous|to|_to_copy|slice_backward|index|new_)",
    "activations, norms, sums": r"luthier::(gated|norm|turn)|aten::(silu|mul|add|sub|div|neg|pow|rsqrt|mean|sum|square|linalg|addc|sin|cos|where|einsum|vecdot)",
}
REST = "Python and all else"


class Profiled(TrainerCallback):
    """Records the steps FIRST + 1 to LAST. `found` holds seconds by kind."""

    found: ClassVar[dict[str, float]] = {}
    began: ClassVar[float] = 0.0
    profiler: ClassVar[Any] = None

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        cls = type(self)
        if state.global_step == FIRST:
            cls.profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU])
            cls.profiler.__enter__()
            cls.began = time.perf_counter()
        elif state.global_step == LAST:
            wall = time.perf_counter() - cls.began
            cls.profiler.__exit__(None, None, None)
            cls.found = by_kind(cls.profiler.key_averages(), wall)


def by_kind(operators: Any, wall: float) -> dict[str, float]:
    """Seconds of each kind; the rest of the time by the clock is Python's."""
    seconds: Counter[str] = Counter()
    for operator in operators:
        for kind, names in KINDS.items():
            if re.search(names, operator.key):
                seconds[kind] += operator.self_cpu_time_total / 1e6
                break
    seconds[REST] = wall - sum(seconds.values())
    return {kind: round(seconds[kind], 3) for kind in [*KINDS, REST]}


def main() -> int:
    from benchmarks.training_speed import SHARED, WORKS, machine_rate, need, run
    from luthier.commands.models import fetch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shared", type=Path, default=SHARED)
    parser.add_argument("--peer-script", type=Path, default=SHARED / "bench" / "peer_trainer.py")
    # this script again, as the process that is measured
    parser.add_argument("--side", choices=["luthier", "peer"], help=argparse.SUPPRESS)
    parser.add_argument("--rows", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        (profile_ours if options.side == "luthier" else profile_peer)(options.rows, options.peer_script)
        return 0
    need(options.peer_script, options.shared / "data")
    fetch("smollm2-135m")
    sides = {}
    with tempfile.TemporaryDirectory() as name:
        source, rows = WORKS["sft"].rows(options.shared, Path(name))
        for side, file in (("peer", source), ("luthier", rows)):
            command = [sys.executable, __file__, "--side", side, "--rows", str(file)]
            sides[side] = run([*command, "--peer-script", str(options.peer_script)])
    tokens = sides["luthier"].pop("tokens")
    for side, seconds in sides.items():
        sides[side] = {kind: round(1000 * each / tokens, 3) for kind, each in seconds.items()}
        print(side, json.dumps(sides[side]), "together", round(sum(sides[side].values()), 2))
    result = {"seconds_for_1000_tokens": sides, "tokens": tokens, "float32_gflops": machine_rate()}
    path = ROOT / "benchmarks" / "results" / "where_time_goes.json"
    path.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    draw(sides, ROOT / "docs" / "images" / "where_time_goes.png")
    return 0


def profile_ours(rows: Path, _: Path) -> None:
    """luthier's steps, and how many tokens they had."""
    from benchmarks import training_speed
    from benchmarks.where_time_goes import Profiled as Recorder  # the module the run imports, not this __main__

    work = training_speed.WORKS["sft"]
    callbacks = ["benchmarks.step_clock.StepClock", "benchmarks.where_time_goes.Profiled"]
    own = training_speed.train_ours(dataclasses.replace(work, training={"callbacks": callbacks}), rows, LAST + 1)
    print(json.dumps({**Recorder.found, "tokens": sum(own["step_tokens"][FIRST:LAST])}))


def profile_peer(rows: Path, script: Path) -> None:
    """The peer's own script, with one callback more."""
    from transformers import trainer

    from luthier.commands.models import fetch

    trainer.DEFAULT_CALLBACKS.append(Profiled)
    arguments = ["--peer", "hf", "--model", str(fetch("smollm2-135m")), "--data", str(rows)]
    sys.argv = [str(script), *arguments, "--batch-size", "4", "--steps", str(LAST + 1)]
    runpy.run_path(str(script), run_name="__main__")
    print(json.dumps(Profiled.found))


def draw(sides: dict[str, dict[str, float]], path: Path) -> None:
    """Two bars of seconds for 1,000 tokens, one piece a kind."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 2.8), layout="constrained")
    labels = {"peer": "transformers' Trainer", "luthier": "luthier"}
    shown = ["luthier", "peer"]
    longest = max(sum(sides[side].values()) for side in shown)
    left = [0.0, 0.0]
    for kind in [*KINDS, REST]:
        widths = [sides[side][kind] for side in shown]
        bars = axes.barh([labels[side] for side in shown], widths, left=left, label=kind, height=0.6)
        texts = [f"{width:.2f}" if width > longest / 24 else "" for width in widths]
        axes.bar_label(bars, texts, label_type="center", size=8)
        left = [before + width for before, width in zip(left, widths, strict=True)]
    for row, together in enumerate(left):
        axes.text(together, row, f"  {together:.2f} s", va="center", size=9)
    axes.set_xlim(0, longest * 1.1)
    axes.set_xlabel("seconds for 1,000 tokens of the rows")
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    sys.exit(main())
