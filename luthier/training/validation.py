"""Loss on rows that are not trained on, and the stage's metrics: of all, and of each source where that is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from luthier.data.examples import TokenizedExample
from luthier.data.packing import pack
from luthier.foundation.errors import TrainingError
from luthier.metrics._metric import Array
from luthier.training.optimization import to_evaluation
from luthier.training.run import Fit


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A set's sums.

    Args:
        loss, denominator, targets: sums over the set.
        outcomes_EC: what the stage keeps of each example, in the set's order; None where it has no metrics.
    """

    loss: float
    denominator: float
    targets: float
    outcomes_EC: Array | None = None

    @property
    def mean_loss(self) -> float:
        """The loss as in training: its sum over its denominators' sum."""
        return self.loss / self.denominator


def validate(run: Fit) -> None:
    """Evaluate on the validation set, with Trainer's events; under data.evaluate_each on each of its entries too, whose
    losses are called eval_NAME_loss as Trainer calls them for several sets."""
    began = time.perf_counter()
    sets = run.validation_sets or {"": run.validation}
    found = {name: evaluate(run, rows, lambda: run.bridge.fire("prediction_step")) for name, rows in sets.items()}
    whole = _joined(list(found.values()))
    measured = {"eval_loss": whole.mean_loss, **_measured(run, whole, "eval_")}
    for name, part in found.items():
        if name:
            measured |= {f"eval_{name}_loss": part.mean_loss, **_measured(run, part, f"eval_{name}_")}
    wrong = [f"{name} {value}" for name, value in measured.items() if not math.isfinite(value)]
    if wrong:
        raise TrainingError(
            f"the evaluation after step {run.bridge.state.global_step} gave {', '.join(wrong)}.",
            "Lower training.learning_rate, or check the validation rows with `luthier data show --split validation`.",
        )
    # the first rank's: a best checkpoint may be chosen by it, and all ranks must choose the same
    seconds = run.engine.totals(time.perf_counter() - began if run.engine.rank == 0 else 0.0)[0]
    batches = sum(math.ceil(len(rows) / run.config.training.per_device_eval_batch_size) for rows in sets.values())
    metrics = {
        **measured,
        "eval_runtime": round(seconds, 4),
        "eval_samples_per_second": round(len(run.validation) / seconds, 3),
        "eval_steps_per_second": round(batches / seconds, 3),
    }
    state = run.bridge.state
    place = {"step": state.global_step, "epoch": state.epoch}
    run.metrics.append({**place, **measured, "eval_targets": int(whole.targets), "seconds": round(seconds, 4)})
    run.bridge.log(dict(metrics))
    run.bridge.fire("evaluate", metrics={**metrics, "epoch": state.epoch})
    if run.bridge.note_best(metrics) and run.config.training.load_best_model_at_end:
        run.bridge.control.should_save = True  # evaluations may come more often than saves; the best must be on disk
    run.say(f"step {state.global_step}: {', '.join(f'{name} {value:.4f}' for name, value in measured.items())}")


def evaluate(run: Fit, examples: Sequence[TokenizedExample], on_batch: Callable[[], None] = lambda: None) -> Evaluation:
    """A set's loss and outcomes, its batches shared out among the ranks; weights untouched."""
    run.scorer.eval()
    to_evaluation(run.optimizer)
    loss, denominator, targets = 0.0, 0.0, 0
    outcomes_EC: Array | None = None
    size = run.config.training.per_device_eval_batch_size
    starts = range(0, len(examples), size)
    with torch.no_grad():
        for start in starts[run.engine.rank :: run.engine.world_size]:
            batch = pack(examples[start : start + size], run.share_in_evaluation).to(run.engine.device)
            with run.engine.autocast():
                scores = run.scorer(batch, run.stage.readout)
                loss += float(run.stage.loss(scores, batch))
            denominator += run.stage.denominator(batch)
            targets += len(batch.targets_N)
            if run.stage.metrics:
                part = run.stage.outcomes(scores, batch).double().cpu().numpy()
                if outcomes_EC is None:
                    outcomes_EC = np.zeros((len(examples), part.shape[1]))
                outcomes_EC[start : start + len(part)] = part
            on_batch()
    run.scorer.train()
    total, denominators, count = run.engine.totals(loss, denominator, targets)
    if run.stage.metrics:
        outcomes_EC = _of_all_ranks(run, outcomes_EC, len(examples))
    return Evaluation(total, denominators, count, outcomes_EC)


def measure(run: Fit, found: Evaluation) -> dict[str, float]:
    """The stage's metrics of a set."""
    return {} if found.outcomes_EC is None else run.stage.measure(found.outcomes_EC)


def _measured(run: Fit, found: Evaluation, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in measure(run, found).items()}


def _of_all_ranks(run: Fit, own_EC: Array | None, examples: int) -> Array | None:
    """The outcomes of all ranks: each has filled in its examples, and zeros elsewhere."""
    if run.engine.world_size == 1:
        return own_EC
    (columns,) = run.engine.largest(0 if own_EC is None else own_EC.shape[1])  # a rank may have had no batch
    own_EC = np.zeros((examples, columns)) if own_EC is None else own_EC
    return np.array(run.engine.totals(*own_EC.ravel().tolist())).reshape(examples, columns)


def _joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Sets as one."""
    outcomes = [part.outcomes_EC for part in parts if part.outcomes_EC is not None]
    return Evaluation(
        sum(part.loss for part in parts),
        sum(part.denominator for part in parts),
        sum(part.targets for part in parts),
        np.concatenate(outcomes) if outcomes else None,
    )
