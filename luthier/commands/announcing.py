"""What a run says of itself at its start, while it trains, and at its end."""

from __future__ import annotations

import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING

from luthier.foundation.progress import TrainingProgress, say

if TYPE_CHECKING:
    from luthier.commands.setup import Setup
    from luthier.commands.train import TrainResult
    from luthier.model.heads import SequenceHead
    from luthier.training.run import Fit


def say_counts(setup: Setup) -> None:
    """What is learnt from, and what learns."""
    rows = setup.data.train
    if setup.data.stream is None:
        say(f"data: {len(rows):,} examples, {rows.tokens:,} tokens, {_learnt(setup)}")
    else:
        say(f"data: streamed, {setup.config.data.buffer_size:,} rows at a time")
    say(f"model: {setup.count}")


def _learnt(setup: Setup) -> str:
    """What is learnt of the training rows."""
    if setup.head is None:
        return f"{setup.data.train.targets:,} of them trained"
    labels = setup.head.labels
    shown = ", ".join(labels[:8]) + (f" and {len(labels) - 8} more" if len(labels) > 8 else "")
    if labels:
        return f"each with {'several' if 'multi' in setup.head.problem else 'one'} of: {shown}"
    if (setup.head.mean, setup.head.scale) == (0, 1):
        return "each with a number"
    return (
        f"each with a number, learnt less the mean {setup.head.mean:g}, by the standard deviation {setup.head.scale:g}"
    )


def report_to(run: Fit, progress: TrainingProgress) -> None:
    """Let the loop speak through the progress display."""
    from luthier.foundation.devices import resident_bytes

    began = time.perf_counter()
    tokens = 0.0

    def report(step: int, values: dict[str, float]) -> None:
        nonlocal tokens
        tokens += values["tokens"]
        shown = {
            "loss": values["loss"],
            "tokens_per_second": tokens / (time.perf_counter() - began),
            "memory_bytes": float(resident_bytes()),
        }
        progress.update(step, shown)

    run.report = report
    run.say = progress.message


def say_what_next(result: TrainResult, head: SequenceHead | None) -> None:
    """How a run ended, and where its files are."""
    say(
        f"Done: {result.steps} steps in {result.seconds:.0f} s, mean loss {result.train_loss:.4f}"
        + (f", test loss {result.test_loss:.4f}" if result.test_loss is not None else "")
        + "".join(f", test {name} {value:.4f}" for name, value in result.test_metrics.items())
        + "."
    )
    say(f"  model:      {result.final}")
    say(f"  loss curve: {result.loss_plot}")
    predictions = Path(result.output_dir) / "predictions.jsonl"
    if predictions.exists():
        say(f"  predicted:  {predictions}")
    if head is None:
        say(f"  talk to it: luthier chat {shlex.quote(result.output_dir)}")
