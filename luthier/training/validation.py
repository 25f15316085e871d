"""Loss on rows that are not trained on: of all, and of each source where that is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch

from luthier.data.examples import TokenizedExample
from luthier.data.packing import pack
from luthier.foundation.errors import TrainingError
from luthier.training.run import Fit


def validate(run: Fit) -> None:
    """Evaluate on the validation set, with Trainer's events; under data.evaluate_each on each of its entries too, whose
    losses are called eval_NAME_loss as Trainer calls them for several sets."""
    began = time.perf_counter()
    sets = run.validation_sets or {"": run.validation}
    sums = {name: _sums(run, rows, lambda: run.bridge.fire("prediction_step")) for name, rows in sets.items()}
    total, denominator, targets = (sum(values) for values in zip(*sums.values(), strict=True))
    losses = {"eval_loss": total / denominator}
    losses |= {f"eval_{name}_loss": loss / count for name, (loss, count, _) in sums.items() if name}
    wrong = [f"{name} {loss}" for name, loss in losses.items() if not math.isfinite(loss)]
    if wrong:
        raise TrainingError(
            f"the evaluation after step {run.bridge.state.global_step} gave {', '.join(wrong)}.",
            "Lower training.learning_rate, or check the validation rows with `luthier data show --split validation`.",
        )
    # the first rank's: a best checkpoint may be chosen by it, and all ranks must choose the same
    seconds = run.engine.totals(time.perf_counter() - began if run.engine.rank == 0 else 0.0)[0]
    batches = sum(math.ceil(len(rows) / run.config.training.per_device_eval_batch_size) for rows in sets.values())
    metrics = {
        **losses,
        "eval_runtime": round(seconds, 4),
        "eval_samples_per_second": round(len(run.validation) / seconds, 3),
        "eval_steps_per_second": round(batches / seconds, 3),
    }
    state = run.bridge.state
    place = {"step": state.global_step, "epoch": state.epoch}
    run.metrics.append({**place, **losses, "eval_targets": int(targets), "seconds": round(seconds, 4)})
    run.bridge.log(dict(metrics))
    run.bridge.fire("evaluate", metrics={**metrics, "epoch": state.epoch})
    if run.bridge.note_best(metrics) and run.config.training.load_best_model_at_end:
        run.bridge.control.should_save = True  # evaluations may come more often than saves; the best must be on disk
    run.say(f"step {state.global_step}: {', '.join(f'{name} {loss:.4f}' for name, loss in losses.items())}")


def evaluate(run: Fit, examples: Sequence[TokenizedExample]) -> float:
    """Mean loss over a set: its sum over its denominators' sum; weights untouched."""
    loss, denominator, _ = _sums(run, examples)
    return loss / denominator


def _sums(
    run: Fit, examples: Sequence[TokenizedExample], on_batch: Callable[[], None] = lambda: None
) -> tuple[float, float, float]:
    """Loss, denominator and number of targets of a set, its batches shared out among the ranks and summed over them."""
    run.scorer.eval()
    loss, denominator, targets = 0.0, 0.0, 0
    size = run.config.training.per_device_eval_batch_size
    starts = range(0, len(examples), size)
    with torch.no_grad():
        for start in starts[run.engine.rank :: run.engine.world_size]:
            batch = pack(examples[start : start + size]).to(run.engine.device)
            with run.engine.autocast():
                loss += float(run.stage.loss(run.scorer(batch), batch))
            denominator += run.stage.denominator(batch)
            targets += len(batch.targets_N)
            on_batch()
    run.scorer.train()
    total, denominators, count = run.engine.totals(loss, denominator, targets)
    return total, denominators, count
