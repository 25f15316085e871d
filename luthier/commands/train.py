"""`luthier train`: one config in, a model out."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands import refusals, run_folder
from luthier.commands.announcing import report_to, say_counts, say_what_next
from luthier.commands.batching import Settled, bounded, free_for_each, settle
from luthier.commands.launching import command_line, resuming
from luthier.commands.space import check_space
from luthier.foundation.errors import CheckpointError, Interrupted, UserError
from luthier.foundation.heap import return_freed_memory
from luthier.foundation.progress import TrainingProgress, say

if TYPE_CHECKING:
    from transformers import TrainerCallback

    from luthier.commands.setup import Setup
    from luthier.training.checkpoints import Checkpoint, Checkpoints
    from luthier.training.engine import Engine
    from luthier.training.run import Fit
    from luthier.training.validation import Evaluation


@dataclass
class TrainResult:
    """What a run gave.

    Args:
        output_dir: the run's folder; final: the trained model in it.
        steps: optimizer steps of the whole run.
        train_loss: mean loss over the run's steps.
        best_metric: best value of metric_for_best_model, if there were evaluations.
        test_loss: loss on data.test, if there is one; test_metrics: what the stage measures on it beside that.
        route: segmented or padded.
        seconds: of this call's training, evaluation and saving included.
    """

    output_dir: str
    final: str
    steps: int
    train_loss: float
    best_metric: float | None
    test_loss: float | None
    trainable_parameters: int
    total_parameters: int
    route: str
    seconds: float
    loss_plot: str
    history: list[dict[str, Any]] = field(repr=False)
    test_metrics: dict[str, float] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The results without the history, which stands in metrics.jsonl."""
        values = asdict(self)
        del values["history"]
        return values


def train(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    resume: bool = False,
    overwrite: bool = False,
    trust_remote_code: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
) -> TrainResult:
    """Train a model as a config says; see `luthier.train`.

    Args:
        callbacks: beside the config's own.
    """
    config = refusals.read(source, overrides)
    folder = Path(config.output_dir)
    command = command_line(source, overrides, trust_remote_code=trust_remote_code)
    run_folder.check_claim(folder, resume=resume, overwrite=overwrite, resume_command=resuming(command))
    refusals.check(config)

    from luthier.commands.setup import check_device_map, set_up
    from luthier.foundation.devices import choose_device
    from luthier.model.loading import check_quantization
    from luthier.model.quantization import check_backend
    from luthier.training.engine import make_engine
    from luthier.training.precision import warn_of_slow_precision

    device = choose_device(config.training.use_cpu)
    engine = make_engine(config.training, device)
    warn_of_slow_precision(config, device, say)
    if config.model.quantization is not None:
        check_backend(config.model.quantization, device)
    day = engine.lead(lambda: run_folder.day_of(folder, resume=resume).isoformat())
    setup = set_up(config, trust_remote_code=trust_remote_code, say=say, day=date.fromisoformat(day))
    check_device_map(setup, device)
    check_quantization(replace(setup.source, settings=setup.base_settings), device, training=True)
    say_counts(setup)
    # one rank keeps the folder to the run; the others follow it
    with run_folder.locked(folder) if engine.rank == 0 else nullcontext():
        free = free_for_each(setup, engine)
        settled = partial(settle, setup, engine, folder, free, trust_remote_code)
        claim = Claim(folder, command, resume, overwrite, settled, day)
        result = _train(setup, engine, claim, callbacks, trust_remote_code=trust_remote_code)
    engine.close()
    return_freed_memory()
    return result


@dataclass(frozen=True)
class Claim:
    """How a run uses its folder.

    Args:
        settle: what of the run's batches is settled at its start, or was; told whether it goes on from a checkpoint.
        day: that its chat template is told, see `run_folder.day_of`.
    """

    folder: Path
    command: str
    resume: bool
    overwrite: bool
    settle: Callable[[bool], Settled]
    day: str


def _train(
    setup: Setup, engine: Engine, claim: Claim, more: Sequence[TrainerCallback], *, trust_remote_code: bool
) -> TrainResult:
    """Take the folder up, put the run together, and fit."""
    from luthier.commands.assembly import assemble
    from luthier.training.callbacks import make_callbacks
    from luthier.training.checkpoints import Checkpoints
    from luthier.training.exhaustion import disk_explained, memory_explained
    from luthier.training.interruption import ended_early
    from luthier.training.saving import restore

    config, folder, again = setup.config, claim.folder, resuming(claim.command)
    callbacks = [*make_callbacks(config), *more]
    fingerprints, hardware = identity(setup, engine)
    checkpoints = Checkpoints(folder / "checkpoints", config.training.save_total_limit, fingerprints)
    taken = engine.lead(lambda: _take_up(setup, claim, checkpoints, hardware))
    if taken["finished"] is not None:
        return TrainResult(**taken["finished"])
    bounded(setup, taken["batches"])
    config = setup.config
    noted = _end_noted(folder) if engine.rank == 0 else nullcontext()
    out_of_room = disk_explained(folder, checkpoints.folder, folder / run_folder.TRUNK, again)
    with noted, ended_early(), memory_explained(config, checkpoints.folder, again), out_of_room:
        checkpoint = checkpoints.at(taken["step"]) if taken["step"] is not None else None
        run = assemble(
            setup,
            folder,
            engine,
            checkpoints,
            callbacks,
            again,
            checkpoint=checkpoint.path if checkpoint is not None else None,
            trust_remote_code=trust_remote_code,
        )
        if checkpoint is not None:
            setup.load_weights(run.model, checkpoint.path)
            restore(run, checkpoint)
            say(f"Going on from {checkpoint.path.name}.")
        with run.stop:  # to the end: a stop asked for after the last step lets the run write what it learnt
            result = _run(setup, run, folder)
    say_what_next(result, setup.head)
    return result


def _take_up(setup: Setup, claim: Claim, checkpoints: Checkpoints, hardware: dict[str, Any]) -> dict[str, Any]:
    """Make the folder this run's: what it held is checked, gone on from or removed.

    Returns:
        `step` of the checkpoint to go on from, or None; `finished`: the result of a run that has nothing left to do;
        `batches`: see `settle`.
    """
    from luthier.commands.setup import leave_rejected

    folder = claim.folder
    run_folder.check_claim(  # again: now nobody else can
        folder, resume=claim.resume, overwrite=claim.overwrite, resume_command=resuming(claim.command)
    )
    checkpoint = checkpoints.newest(say) if claim.resume else None
    finished = _go_on_from(setup, claim, checkpoint, checkpoints, hardware)
    if finished is not None:
        return {"step": None, "finished": asdict(finished)}
    check_space(setup, folder, checkpoints)
    batches = claim.settle(checkpoint is not None)
    if checkpoint is None:
        run_folder.clear(folder)
        leave_rejected(setup, folder)
    base = None if setup.merged_adapters else setup.source.base
    run_folder.write_start(
        folder,
        setup.config,
        base,
        checkpoints.fingerprints,
        hardware,
        claim.command,
        batches,
        setup.data.report.labels,
        claim.day,
    )
    return {"step": checkpoint.step if checkpoint is not None else None, "finished": None, "batches": batches}


def _go_on_from(
    setup: Setup, claim: Claim, checkpoint: Checkpoint | None, checkpoints: Checkpoints, hardware: dict[str, Any]
) -> TrainResult | None:
    """Check what the run goes on from, or removes; the results of a run that is finished already.

    Raises:
        UserError: the checkpoint is of another run, or past this one's end; there is none, and a model that would be lost.
    """
    from luthier.training.saving import TRAINER_STATE, check_steps, ending_of

    folder, total = claim.folder, setup.schedule.total_steps
    done = run_folder.finished(folder, checkpoint, checkpoints.paths()) if claim.resume else None
    known = checkpoint or (done.end if done is not None else None)
    if known is None:
        if claim.resume and (folder / "final").exists():
            raise run_folder.nothing_to_go_on_from(folder, "its files are not as the run left them")
        run_folder.check_not_inside(folder, [setup.source.base, *(part.folder for part in setup.source.adapters)])
        if claim.resume:
            say("There is no checkpoint to go on from: the run starts at the beginning.")
        return None
    if checkpoint is not None:
        if checkpoint.step > total:
            raise UserError(
                f"{checkpoint.path.name} is past the end of this config, which has {total} steps.",
                "Raise training.max_steps or num_train_epochs, or start anew with --overwrite.",
            )
        check_steps(checkpoint, setup.schedule)
    saved, tell = known.manifest["fingerprints"], say if checkpoint is not None else lambda change: None
    changes = run_folder.check_same_run(folder, setup.config, checkpoints.fingerprints, saved, hardware, tell)
    by_time = done is not None and ending_of(done.end, setup.config).by_time
    if done is not None and not changes and not by_time:
        say(f"{folder} is finished: nothing is left to do.")
        return TrainResult(**done.results, history=done.end.read_json(TRAINER_STATE)["log_history"])
    if checkpoint is None:
        why = f"the config changed: {'; '.join(changes)}" if changes else "its time was up before the last step"
        raise run_folder.nothing_to_go_on_from(folder, why)
    return None


def identity(setup: Setup, engine: Engine) -> tuple[dict[str, str], dict[str, Any]]:
    """What makes a run this run: fingerprints of config, data and model; and the hardware that decides the last bits."""
    from luthier.foundation.devices import compute_threads, cpu_name_and_flags

    fingerprints = {
        "config": run_folder.config_fingerprint(setup.config),
        "data": setup.data.fingerprint,
        "model": setup.source.fingerprint,
    }
    return fingerprints, {
        "cpu": cpu_name_and_flags()[0],
        "device": str(engine.device),
        "threads": compute_threads(),
        "ranks": engine.world_size,
    }


def _run(setup: Setup, run: Fit, folder: Path) -> TrainResult:
    """Fit, take the best weights if asked, write them, score the test set, and write what else a run leaves behind."""
    from luthier.training.checkpoints import find_fault
    from luthier.training.loop import fit
    from luthier.training.validation import evaluate, measure

    started = time.perf_counter()
    steps_before = run.bridge.state.global_step
    if steps_before < run.schedule.total_steps and run.engine.rank == 0:
        # of a finished run that goes on: until it ends again, its newest checkpoint is the model
        shutil.rmtree(folder / "final", ignore_errors=True)
    with TrainingProgress(run.schedule.total_steps, steps_before, enabled=run.engine.rank == 0) as progress:
        report_to(run, progress)
        summary = fit(run)
    state = run.bridge.state
    if run.config.training.load_best_model_at_end and state.best_model_checkpoint:
        best = run.checkpoints.folder / Path(state.best_model_checkpoint).name
        fault = find_fault(best)
        if fault:
            raise CheckpointError(
                f"the best checkpoint, {best.name}, is damaged: {fault}.",
                "Set training.load_best_model_at_end to false and resume, to end with the last weights.",
            )
        setup.load_weights(run.model, best)
        say(
            f"final/ takes the best weights, those of {best.name} ({run.bridge.args.metric_for_best_model} {state.best_metric:.4f})."
        )
    run.bridge.fire("train_end")
    run.engine.lead(lambda: _write_final(run, folder, setup))  # now: whatever measuring meets, what was learnt is kept
    if run.test:
        say(f"{folder / 'final'} is written; data.test is measured now.")
    test = evaluate(run, run.test) if run.test else None
    held = evaluate(run, run.validation) if run.validation and setup.stage.metrics else None
    result = TrainResult(
        output_dir=str(folder),
        final=str(folder / "final"),
        steps=state.global_step,
        train_loss=summary["train_loss"],
        best_metric=state.best_metric,
        test_loss=test.mean_loss if test else None,
        test_metrics=measure(run, test) if test else {},
        trainable_parameters=setup.count.trainable,
        total_parameters=setup.count.total,
        route=run.scorer.route,  # type: ignore[arg-type]
        seconds=round(time.perf_counter() - started, 3),
        loss_plot=str(folder / "loss.png"),
        history=list(state.log_history),
    )
    run.engine.lead(lambda: _leave_behind(run, folder, setup, result, {"validation": held, "test": test}))
    return result


def _leave_behind(
    run: Fit, folder: Path, setup: Setup, result: TrainResult, held: Mapping[str, Evaluation | None]
) -> None:
    """The files of a finished run beside final/."""
    from luthier.commands.predictions import write_predictions
    from luthier.foundation.files import write_json
    from luthier.training.exhaustion import disk_explained
    from luthier.training.metrics_log import plot_losses

    title = f"{folder.name}: {Path(setup.config.model.name).name}, {setup.config.method.name}"
    with disk_explained(folder, run.checkpoints.folder, folder / run_folder.TRUNK, run.resume_command):
        if any(found is not None and (found.outcomes_EC is not None or found.answers) for found in held.values()):
            write_predictions(folder / "predictions.jsonl", setup, held)
        write_json(folder / run_folder.TRAINER_STATE, run.bridge.export())
        plot_losses(run.metrics.read(), folder / "loss.png", title)
        run_folder.write_end(folder, "finished", result.as_dict())


def _write_final(run: Fit, folder: Path, setup: Setup) -> None:
    """final/: the trained model with a model card, sealed like a checkpoint."""
    from luthier.commands.model_card import model_card
    from luthier.foundation.files import whole_folder, write_text
    from luthier.scoring.trunk import remove_trunk
    from luthier.training.checkpoints import seal
    from luthier.training.exhaustion import disk_explained

    final, trunk = folder / "final", folder / run_folder.TRUNK
    remove_trunk(trunk)  # its room is for the model
    explained = disk_explained(folder, run.checkpoints.folder, trunk, run.resume_command)
    with explained, whole_folder(final) as building:  # explained here: the other ranks are told of it
        run.save_model(building)
        write_text(building / "README.md", model_card(setup.config, setup.source.base_name, run.bridge.state))
        seal(building, {"step": run.bridge.state.global_step, "fingerprints": run.checkpoints.fingerprints})
        shutil.rmtree(final, ignore_errors=True)  # of a finished run that was gone on with


@contextmanager
def _end_noted(folder: Path) -> Iterator[None]:
    """run.json says how a run ended, whatever the end."""
    try:
        yield
    except BaseException as error:
        asked = isinstance(error, Interrupted | KeyboardInterrupt)
        try:
            run_folder.write_end(folder, "interrupted" if asked else "failed", {} if asked else {"error": str(error)})
        except OSError as second:  # a full disk: the error that matters is the first
            say(f"run.json could not be written: {second}")
        raise
