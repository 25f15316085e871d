"""The loop: epochs, steps, evaluation, logging and saving, in the order of transformers' Trainer.

A step: add the denominators over all batches and ranks; for each batch (loss / denominator).backward(); clip; refuse
what is not finite; update; schedule. So 1 x 8, 8 x 1 and two ranks x 4 give the same gradients.
"""

from __future__ import annotations

import math
import time

from luthier.foundation.errors import Interrupted, LuthierError, TrainingError
from luthier.foundation.heap import keep_freed_memory
from luthier.foundation.seeding import seed_step
from luthier.training.feeds import Step
from luthier.training.metrics_log import Window
from luthier.training.optimization import to_evaluation, to_training
from luthier.training.run import Fit, Position
from luthier.training.saving import save_checkpoint
from luthier.training.validation import validate

SKIPS_IN_A_ROW = 20  # fp16 steps lost to overflow before the run is refused


def fit(run: Fit) -> dict[str, float]:
    """Train to the end of the schedule, or until a callback stops it.

    Returns:
        train_loss (mean over the whole run's steps), train_runtime in seconds of this call, and what Trainer reports
        beside them.

    Raises:
        Interrupted: a signal asked to stop; the state is saved. TrainingError: a loss or gradient that is not finite.
    """
    started, first_step = time.perf_counter(), run.bridge.state.global_step
    keep_freed_memory()
    _begin(run)
    # train_begin clears the control; a run saved after its last step, or after a callback stopped it, has only its end left
    run.bridge.control.should_training_stop |= run.stopped_before or first_step >= run.schedule.total_steps
    _agree(run)
    if run.bridge.control.should_evaluate:  # the run was stopped before an evaluation that was due
        run.saved_at = None
        _log_evaluate_save(run)
    control = run.bridge.control  # a callback may have stopped the epoch in the step that was saved
    stops = run.position.at_end or control.should_epoch_stop or control.should_training_stop
    if stops and not run.position.epoch_closed:
        _close_epoch(run)
    while run.position.epoch < run.schedule.total_epochs and not run.bridge.control.should_training_stop:
        _epoch(run)
        _close_epoch(run)
    to_evaluation(run.optimizer)
    seconds = time.perf_counter() - started
    steps = run.bridge.state.global_step - first_step
    examples = run.schedule.examples_in(steps)
    summary = {
        "train_runtime": round(seconds, 4),
        "train_samples_per_second": round(examples / seconds, 3),
        "train_steps_per_second": round(steps / seconds, 3),
        "train_loss": run.loss_total / max(run.loss_steps, 1),
    }
    run.bridge.log(dict(summary))
    return summary


def _begin(run: Fit) -> None:
    """Fire train_begin, at which services connect: what fails there is the user's to mend."""
    try:
        run.bridge.fire("train_begin")
    except LuthierError:
        raise
    except Exception as error:
        if not run.config.training.report_to:
            raise
        raise TrainingError(
            f"training.report_to {', '.join(run.config.training.report_to)} could not start: {type(error).__name__}: {error}",
            "Log in to the service, or choose its offline mode (WANDB_MODE=offline, SWANLAB_MODE=local).",
        ) from error


def _epoch(run: Fit) -> None:
    """The steps of an epoch that are still to do."""
    position = run.position
    position.epoch_closed = False
    run.bridge.fire("epoch_begin")
    began = time.perf_counter()
    for step in run.feed.steps(position.epoch, position.index, position.place):
        for news in step.news:
            for line in news.rejected:
                run.rejected.append(line)
            for sentence in news.sentences:
                run.say(sentence)
        train_step(run, step)
        run.window.seconds += time.perf_counter() - began
        _log_evaluate_save(run)
        if run.bridge.control.should_epoch_stop or run.bridge.control.should_training_stop:
            return
        began = time.perf_counter()


def _close_epoch(run: Fit) -> None:
    """The events at an epoch's end, and what they ask for."""
    run.position.epoch_closed = True
    run.bridge.fire("epoch_end")
    _agree(run)
    if run.position.at_end or run.bridge.control.should_epoch_stop:
        run.position = Position(run.position.epoch + 1)
    _log_evaluate_save(run)


def train_step(run: Fit, step: Step) -> None:
    """One optimizer step over all its batches."""
    bridge, state, batches = run.bridge, run.bridge.state, step.batches
    bridge.fire("step_begin")
    seed_step(run.config.training.seed, state.global_step, run.engine.rank)
    run.scorer.train()
    to_training(run.optimizer)
    denominator, tokens, targets = run.engine.totals(
        sum(run.stage.denominator(batch) for batch in batches),
        sum(batch.tokens for batch in batches),
        sum(len(batch.targets_N) for batch in batches),
    )
    loss = 0.0
    for number, batch in enumerate(batches, start=1):
        batch = batch.to(run.engine.device)
        with run.engine.autocast():
            scores = run.scorer(batch, run.stage.readout)
            batch_loss = run.stage.loss(scores, batch)
        if scores.auxiliary_loss is not None:  # a mean already: each batch's counts by its share of the step
            batch_loss = batch_loss + run.stage.denominator(batch) * scores.auxiliary_loss
        batch_loss = batch_loss / denominator
        run.engine.backward(batch_loss)
        loss += float(batch_loss.detach())
        if number < len(batches):
            bridge.fire("substep_end")
    loss = run.engine.totals(loss)[0]
    norm = run.engine.clip(run.optimizer, run.parameters, run.config.training.max_grad_norm)
    _refuse_non_finite(run, step, loss, norm)
    bridge.fire("pre_optimizer_step")
    stepped = run.engine.step(run.optimizer)
    bridge.fire("optimizer_step")
    learning_rate = float(run.scheduler.get_last_lr()[0])
    if stepped:
        run.scheduler.step()
    run.skipped = 0 if stepped else run.skipped + 1
    run.optimizer.zero_grad(set_to_none=True)

    if stepped:  # a step lost to an fp16 overflow has no loss
        run.window.steps += 1
        run.window.loss_sum += loss
        run.loss_total += loss
        run.loss_steps += 1
    run.window.tokens += int(tokens)
    run.window.targets += int(targets)
    run.window.learning_rate, run.window.grad_norm = learning_rate, norm if math.isfinite(norm) else None
    run.position.index += 1
    run.position.at_end, run.position.place = step.last, dict(step.after)
    state.global_step += 1
    state.epoch = run.position.epoch + run.schedule.epoch_share(run.position.index)
    bridge.fire("step_end")
    run.report(state.global_step, {"loss": loss, "grad_norm": norm, "learning_rate": learning_rate, "tokens": tokens})


def _refuse_non_finite(run: Fit, step: Step, loss: float, norm: float) -> None:
    """Stop before a loss or gradient that is not finite reaches the weights. fp16's overflows are skipped, and counted."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    if run.config.training.fp16 and run.skipped + 1 < SKIPS_IN_A_ROW:
        return
    kept = run.checkpoints.paths()
    whose = "The step's" if run.engine.world_size == 1 else f"Rank {run.engine.rank}'s"
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    if run.config.training.fp16:
        what += f", {SKIPS_IN_A_ROW} steps in a row overflowed in fp16"
    raise TrainingError(
        f"step {run.bridge.state.global_step + 1}: {what}; the weights were not touched. {whose} rows: {'; '.join(map(str, step.rows()[:8]))}.",
        f"{f'{kept[-1].name} is whole and kept. ' if kept else ''}Lower training.learning_rate, check those rows with `luthier data show`"
        + (", or use bf16 in place of fp16." if run.config.training.fp16 else "."),
    )


def _log_evaluate_save(run: Fit) -> None:
    """What the control's flags ask for; then an interruption, if one was asked for.

    Who stops a run may not wait for an evaluation: one that is due is left to the run that goes on, which finds the flags
    in the checkpoint.
    """
    interrupted = _agree(run)
    if not (interrupted and run.bridge.control.should_evaluate):
        interrupted = _obey(run) or interrupted
    if interrupted:
        if run.saved_at != (run.bridge.state.global_step, run.position.epoch_closed):
            save_checkpoint(run)
        step = run.bridge.state.global_step
        raise Interrupted(
            f"stopped after step {step} of {run.schedule.total_steps}, as asked; everything is saved in {run.checkpoints.path_of(step)}.",
            f"Go on with: {run.resume_command}",
            interrupted,
        )


def _obey(run: Fit) -> int:
    """What the control's flags ask for, in Trainer's order. Returns the number of a signal that came meanwhile, or 0."""
    interrupted = 0
    control = run.bridge.control
    if control.should_log and run.window.tokens:
        _log(run)
        interrupted = _agree(run)
    control = run.bridge.control
    if control.should_evaluate:
        validate(run)
        interrupted = _agree(run)
    if run.bridge.control.should_save:
        save_checkpoint(run)
        run.bridge.fire("save")
        interrupted = _agree(run)
    return interrupted


def _agree(run: Fit) -> int:
    """What the callbacks of one rank ask for, all ranks do: one that saved alone would wait for the others for ever.

    Called after every event at which a rank may decide. Returns the number of the signal that one was stopped by, or 0.
    """
    control = run.bridge.control
    flags = ("should_log", "should_evaluate", "should_save", "should_epoch_stop", "should_training_stop")
    *asked, interrupted = run.engine.largest(
        *(int(getattr(control, flag)) for flag in flags), run.stop.signal_number or 0
    )
    for flag, value in zip(flags, asked, strict=True):
        setattr(control, flag, bool(value))
    return interrupted


def _log(run: Fit) -> None:
    """One line for the steps since the line before."""
    window, state = run.window, run.bridge.state
    line = {
        "step": state.global_step,
        "epoch": state.epoch,
        "loss": window.loss_sum / window.steps if window.steps else None,
        "learning_rate": window.learning_rate,
        "grad_norm": window.grad_norm,
        "tokens": window.tokens,
        "targets": window.targets,
        "seconds": round(window.seconds, 4),
    }
    run.metrics.append(line)
    run.bridge.log({key: line[key] for key in ("loss", "grad_norm", "learning_rate") if line[key] is not None})
    run.window = Window()
