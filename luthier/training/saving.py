"""A run's whole state on disk and back: weights, optimizer, schedule, position, callbacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from luthier.config.schema import RunConfig
from luthier.foundation.errors import CheckpointError, TrainingError
from luthier.foundation.files import write_json
from luthier.training.callbacks import is_still_chosen_by
from luthier.training.checkpoints import Checkpoint
from luthier.training.deadline import time_was_up
from luthier.training.metrics_log import Window
from luthier.training.optimization import optimizer_state, restore_optimizer, restore_scheduler, to_evaluation
from luthier.training.run import Fit, Position
from luthier.training.schedule import Schedule

TRAINER_STATE = "trainer_state.json"
LOOP_STATE = "loop_state.json"
OPTIMIZER_TENSORS = "optimizer.safetensors"
OPTIMIZER_REST = "optimizer.json"


def save_checkpoint(run: Fit) -> Path:
    """Write the run's whole state; returns the checkpoint's folder."""
    to_evaluation(run.optimizer)
    state = run.bridge.state
    path = run.checkpoints.path_of(state.global_step)
    if state.best_global_step == state.global_step and state.best_metric is not None:
        state.best_model_checkpoint = str(path)
    best = Path(state.best_model_checkpoint) if state.best_model_checkpoint else None

    def write() -> None:
        run.checkpoints.write(state.global_step, lambda folder: _fill(run, folder), best)

    run.engine.lead(write)
    run.saved_at = (state.global_step, run.position.epoch_closed)
    return path


def _fill(run: Fit, folder: Path) -> None:
    run.save_model(folder)
    run.save_method_state(folder)
    tensors, rest = optimizer_state(run.model, run.optimizer)
    save_file(tensors, folder / OPTIMIZER_TENSORS)
    write_json(folder / OPTIMIZER_REST, {**rest, "scheduler": {"last_epoch": run.scheduler.last_epoch}})
    write_json(folder / TRAINER_STATE, run.bridge.export())
    write_json(
        folder / LOOP_STATE,
        {
            "position": {
                "epoch": run.position.epoch,
                "index": run.position.index,
                "at_end": run.position.at_end,
                "epoch_closed": run.position.epoch_closed,
                "place": run.position.place,
            },
            "window": run.window.as_dict(),
            "skipped": run.skipped,
            "loss_total": run.loss_total,
            "loss_steps": run.loss_steps,
            "metrics_lines": run.metrics.lines,
            "rejected_lines": run.rejected.lines,
            "steps_per_epoch": run.schedule.steps_per_epoch,
            "examples_per_step": run.schedule.examples_per_step,
            "engine": run.engine.state(),
        },
    )


def check_steps(checkpoint: Checkpoint, schedule: Schedule) -> None:
    """Refuse a checkpoint whose position means nothing in this schedule.

    Raises:
        TrainingError: a step or an epoch has another size.
    """
    loop = checkpoint.read_json(LOOP_STATE)
    steps = (loop["steps_per_epoch"], loop["examples_per_step"])
    if steps != (schedule.steps_per_epoch, schedule.examples_per_step):
        raise TrainingError(
            f"the checkpoint {checkpoint.path.name} is of a run with {steps[0]} steps per epoch of {steps[1]} examples, now there "
            f"are {schedule.steps_per_epoch} of {schedule.examples_per_step}, so its position means nothing here.",
            "Set the batch size, accumulation, number of processes and data as they were, or start anew with --overwrite.",
        )


@dataclass(frozen=True, slots=True)
class Ending:
    """Who ended the run that a checkpoint is of, before the end of its schedule. Neither: the schedule, or an interruption.

    Args:
        by_time: its time was up, so there is more to learn.
        by_callback: early stopping, or another callback that nothing contradicts.
    """

    by_time: bool = False
    by_callback: bool = False


def ending_of(checkpoint: Checkpoint, config: RunConfig) -> Ending:
    """Who ended the run, from what its checkpoint keeps of the callbacks.

    Args:
        config: of the run that goes on: patience that waited for another metric, or was another itself, no longer counts.
    """
    kept, training = checkpoint.read_json(TRAINER_STATE), config.training
    callbacks = kept.get("stateful_callbacks") or {}
    early = callbacks.get("EarlyStoppingCallback")
    now = {
        "early_stopping_patience": training.early_stopping_patience,
        "early_stopping_threshold": training.early_stopping_threshold,
    }
    patience_holds = early is None or (early["args"] == now and is_still_chosen_by(config, kept))
    # both may have stopped it: the evaluation that comes with the end of the time may be the last that was waited for
    out_of_patience = early is not None and patience_holds and _is_over(early)
    by_time = time_was_up(kept, checkpoint.step) and not out_of_patience
    # having reached the end of a schedule that is now longer holds no run back
    stopped = ((callbacks.get("TrainerControl") or {}).get("args") or {}).get("should_training_stop", False)
    ended = stopped and kept["max_steps"] > checkpoint.step
    return Ending(by_time, ended and not by_time and patience_holds)


def _is_over(early_stopping: dict[str, Any]) -> bool:
    """Whether patience was at its end, from what a checkpoint keeps of transformers' EarlyStoppingCallback."""
    waited: int = early_stopping["attributes"]["early_stopping_patience_counter"]
    return waited >= int(early_stopping["args"]["early_stopping_patience"])


def restore(run: Fit, checkpoint: Checkpoint) -> None:
    """Put back what `save_checkpoint` wrote, but for the weights, which the method loads.

    Raises:
        TrainingError: the checkpoint is of another optimizer, or of other steps per epoch.
    """
    loop = checkpoint.read_json(LOOP_STATE)
    check_steps(checkpoint, run.schedule)
    rest = checkpoint.read_json(OPTIMIZER_REST)
    tensors = load_file(checkpoint.path / OPTIMIZER_TENSORS)
    restore_optimizer(run.model, run.optimizer, tensors, rest, run.config.training.optim.counts)
    restore_scheduler(run.scheduler, run.optimizer, rest["scheduler"]["last_epoch"])
    kept = checkpoint.read_json(TRAINER_STATE)
    run.bridge.restore(kept)
    ending = ending_of(checkpoint, run.config)
    run.stopped_before = ending.by_callback
    _forget_best(run, kept)
    if ending.by_time:
        run.say(
            f"The run's time was up after step {checkpoint.step}: it goes on to step {run.schedule.total_steps}, at the learning "
            "rates laid out for all of them."
        )
    if ending.by_callback:
        run.say(f"The run was stopped by a callback after step {checkpoint.step}: nothing is left to do.")
    run.position = Position(**loop["position"])
    run.window = Window(**loop["window"])
    run.skipped, run.loss_total, run.loss_steps = loop["skipped"], loop["loss_total"], loop["loss_steps"]
    run.metrics.cut_to(loop["metrics_lines"])
    run.rejected.cut_to(loop["rejected_lines"])
    run.engine.restore(loop["engine"])
    run.saved_at = (checkpoint.step, run.position.epoch_closed)


def _forget_best(run: Fit, kept: Mapping[str, Any]) -> None:
    """Let the best evaluation so far go where later ones can't be compared with it, or its weights can't become final/."""
    state = run.bridge.state
    if state.best_metric is None:
        return
    saved = state.best_model_checkpoint is not None and (
        Path(state.best_model_checkpoint).name == run.checkpoints.path_of(state.best_global_step).name
    )
    if not is_still_chosen_by(run.config, kept):
        why = "the metric that it was chosen by, its direction, or how answers are made and measured, is another now"
    elif run.config.training.load_best_model_at_end and not saved:
        why = "its weights were not kept"
    else:
        return
    if run.config.training.load_best_model_at_end and (
        run.stopped_before or state.global_step >= run.schedule.total_steps
    ):
        raise CheckpointError(
            f"the best evaluation so far ({state.best_metric:.4f}, after step {state.best_global_step}) counts no longer, since {why}; "
            "and no step is left, so there will be no other.",
            "Resume with more steps (training.max_steps, num_train_epochs), with the settings of before, or with "
            "training.load_best_model_at_end false, which makes final/ of the last weights.",
        )
    run.say(
        f"The best evaluation so far ({state.best_metric:.4f}, after step {state.best_global_step}) counts no longer: {why}."
    )
    state.best_metric = state.best_global_step = state.best_model_checkpoint = None
