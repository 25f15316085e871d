"""Loss on rows that are not trained on, and the stage's metrics: of all, and of each source where that is asked for."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from luthier.data.batch import Batch
from luthier.data.examples import TokenizedExample
from luthier.data.packing import pack
from luthier.foundation.errors import TrainingError
from luthier.metrics._metric import Array
from luthier.metrics._text import TextRow
from luthier.scoring.readouts import Scores
from luthier.training.engine import Engine
from luthier.training.exhaustion import reading
from luthier.training.optimization import to_evaluation
from luthier.training.run import Fit
from luthier.training.stage import Stage


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A set's sums.

    Args:
        loss, denominator, targets: sums over the set.
        outcomes_EC: what the stage keeps of each example, in the set's order; None where it has no metrics.
        parts_E2: each example's share of loss and denominator, where it was asked for.
        answers: what the model answers to each example, where evaluations generate.
    """

    loss: float
    denominator: float
    targets: float
    outcomes_EC: Array | None = None
    parts_E2: Array | None = None
    answers: tuple[TextRow, ...] = ()

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
    """A set's loss and outcomes, its batches shared out among the ranks, and answers to it, where evaluations generate;
    weights untouched."""
    to_evaluation(run.optimizer)
    size = run.config.training.per_device_eval_batch_size
    reader = SetReader(run.scorer, run.stage, run.engine, size, run.share_in_evaluation)
    found = reader.read(examples, on_batch)
    if run.answering is not None:
        found = replace(found, answers=tuple(run.answering.rows(run.engine, examples)))
    run.scorer.train()
    return found


@dataclass(frozen=True, slots=True)
class SetReader:
    """Reads sets without training on them.

    Args:
        scorer: as the engine prepared it.
        batch_size: examples of a batch. share: whether it lays down once what its sequences begin with.
    """

    scorer: torch.nn.Module
    stage: Stage
    engine: Engine
    batch_size: int
    share: bool

    def read(
        self,
        examples: Sequence[TokenizedExample],
        on_batch: Callable[[], None] = lambda: None,
        *,
        each: bool = False,
    ) -> Evaluation:
        """A set's loss and outcomes; the scorer is left in evaluation mode.

        Args:
            each: keep each example's loss too, of a stage whose loss is the next-token one; on one rank.
        """
        self.scorer.eval()
        loss, denominator, targets = 0.0, 0.0, 0
        outcomes_EC: Array | None = None
        parts_E2 = np.zeros((len(examples), 2)) if each else None
        starts = range(0, len(examples), self.batch_size)
        with torch.no_grad(), reading():
            for start in starts[self.engine.rank :: self.engine.world_size]:
                members = examples[start : start + self.batch_size]
                batch = pack(members, self.share).to(self.engine.device)
                with self.engine.autocast():
                    scores = self.scorer(batch, self.stage.readout)
                    loss += float(self.stage.loss(scores, batch))
                denominator += self.stage.denominator(batch)
                targets += len(batch.targets_N)
                if self.stage.metrics:
                    part = self.stage.outcomes(scores, batch).double().cpu().numpy()
                    if outcomes_EC is None:
                        outcomes_EC = np.zeros((len(examples), part.shape[1]))
                    outcomes_EC[start : start + len(part)] = part
                if parts_E2 is not None:
                    parts_E2[start : start + len(members)] = _of_each(members, scores, batch)
                on_batch()
        total, denominators, count = self.engine.totals(loss, denominator, targets)
        if self.stage.metrics:
            outcomes_EC = _of_all_ranks(self.engine, outcomes_EC, len(examples))
        return Evaluation(total, denominators, count, outcomes_EC, parts_E2)


def _of_each(examples: Sequence[TokenizedExample], scores: Scores, batch: Batch) -> Array:
    """Weighted negative log-likelihood and weight of each example of a batch, float64 [examples, 2]."""
    owner = np.repeat(np.arange(len(examples)), [len(example.sequences) for example in examples])
    of_target_N = owner[batch.sequence_of_source_N.cpu().numpy()]
    weights_N = batch.weights_N.double().cpu().numpy()
    nll_N = -scores.logp_N.double().cpu().numpy() * weights_N
    return np.stack([np.bincount(of_target_N, part, len(examples)) for part in (nll_N, weights_N)], axis=1)


def measure(run: Fit, found: Evaluation) -> dict[str, float]:
    """The stage's metrics of a set, and those of what was answered to it."""
    own = {} if found.outcomes_EC is None else run.stage.measure(found.outcomes_EC)
    written = run.answering.measure(run.engine, found.answers) if run.answering is not None else {}
    return {**own, **written}


def _measured(run: Fit, found: Evaluation, prefix: str) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in measure(run, found).items()}


def _of_all_ranks(engine: Engine, own_EC: Array | None, examples: int) -> Array | None:
    """The outcomes of all ranks: each has filled in its examples, and zeros elsewhere."""
    if engine.world_size == 1:
        return own_EC
    (columns,) = engine.largest(0 if own_EC is None else own_EC.shape[1])  # a rank may have had no batch
    own_EC = np.zeros((examples, columns)) if own_EC is None else own_EC
    return np.array(engine.totals(*own_EC.ravel().tolist())).reshape(examples, columns)


def _joined(parts: Sequence[Evaluation]) -> Evaluation:
    """Sets as one."""
    outcomes = [part.outcomes_EC for part in parts if part.outcomes_EC is not None]
    return Evaluation(
        sum(part.loss for part in parts),
        sum(part.denominator for part in parts),
        sum(part.targets for part in parts),
        np.concatenate(outcomes) if outcomes else None,
        answers=tuple(answer for part in parts for answer in part.answers),
    )
