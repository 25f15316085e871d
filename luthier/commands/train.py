"""`luthier train`: one config in, a model out."""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands import run_folder
from luthier.config.loading import load
from luthier.config.schema import RunConfig
from luthier.foundation.errors import LuthierError, ModelError, TrainingError
from luthier.foundation.progress import TrainingProgress

if TYPE_CHECKING:
    import torch
    from torch import nn

    from luthier.commands.setup import Setup
    from luthier.training.loop import Fit


@dataclass
class TrainResult:
    """What a run gave.

    Args:
        output_dir: the run's folder; final: the trained model in it.
        steps: optimizer steps of the whole run.
        train_loss: mean loss over the steps of this call.
        best_metric: best value of metric_for_best_model, if there were evaluations.
        test_loss: loss on data.test, if there is one.
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
) -> TrainResult:
    """Train a model as a config says; see `luthier.train`."""
    config = load(source, overrides)
    folder = Path(config.output_dir)
    command = command_line(source, overrides)
    run_folder.check_claim(folder, resume=resume, overwrite=overwrite, command=command)

    import torch

    from luthier.commands.setup import leave_rejected, set_up
    from luthier.foundation.devices import choose_device, cpu_name_and_flags
    from luthier.training.checkpoints import Checkpoints, need_space

    device = choose_device(config.training.use_cpu)
    warn_of_slow_precision(config, device, say)
    setup = set_up(config, trust_remote_code=trust_remote_code, say=say)
    say(
        f"data: {len(setup.data.train):,} examples, {sum(e.tokens for e in setup.data.train):,} tokens, "
        f"{sum(e.targets for e in setup.data.train):,} of them trained"
    )
    say(f"model: {setup.count}")
    fingerprints = {
        "config": run_folder.config_fingerprint(config),
        "data": setup.data.fingerprint,
        "model": setup.source.fingerprint,
    }
    hardware = {"cpu": cpu_name_and_flags()[0], "device": str(device), "threads": torch.get_num_threads()}
    run_folder.claim(folder, overwrite=overwrite)
    checkpoints = Checkpoints(folder / "checkpoints", config.training.save_total_limit, fingerprints)
    checkpoint = checkpoints.newest(say) if resume else None
    if checkpoint is not None:
        saved = checkpoint.manifest["fingerprints"]
        run_folder.check_same_run(folder, config, fingerprints, saved, hardware, say)
    elif resume:
        say("There is no checkpoint to go on from: the run starts at the beginning.")
        run_folder.claim(folder, overwrite=True)
    need_space(folder, checkpoint_bytes(setup))
    leave_rejected(setup, folder)
    run_folder.write_start(folder, config, fingerprints, hardware, command)

    with _end_noted(folder), _memory_explained(config, checkpoints.folder, command):
        run = assemble(setup, folder, device, checkpoints, command, trust_remote_code=trust_remote_code)
        if checkpoint is not None:
            from luthier.training.loop import restore

            setup.method.load(run.model, checkpoint.path)
            restore(run, checkpoint)
            say(f"Going on from {checkpoint.path.name}.")
        result = _run(setup, run, folder)
    _say_what_next(result, config)
    return result


def _run(setup: Setup, run: Fit, folder: Path) -> TrainResult:
    """Fit, take the best weights if asked, score the test set, and write what a run leaves behind."""
    from luthier.foundation.files import write_json
    from luthier.training.loop import evaluate, fit
    from luthier.training.metrics_log import plot_losses

    started = time.perf_counter()
    steps_before = run.bridge.state.global_step
    with TrainingProgress(run.schedule.total_steps, steps_before) as progress, run.stop:
        _report_to(run, progress)
        summary = fit(run)
    state = run.bridge.state
    if run.config.training.load_best_model_at_end and state.best_model_checkpoint:
        best = run.checkpoints.folder / Path(state.best_model_checkpoint).name
        setup.method.load(run.model, best)
        say(
            f"final/ takes the best weights, those of {best.name} ({run.bridge.args.metric_for_best_model} {state.best_metric:.4f})."
        )
    test_loss = evaluate(run, setup.data.test)[0] if setup.data.test else None
    run.bridge.fire("train_end")
    _write_final(run, folder, setup)
    write_json(folder / "trainer_state.json", run.bridge.export())
    plot_losses(
        run.metrics.read(), folder / "loss.png", f"{folder.name}: {setup.config.model.name}, {setup.config.method.name}"
    )
    result = TrainResult(
        output_dir=str(folder),
        final=str(folder / "final"),
        steps=state.global_step,
        train_loss=summary["train_loss"],
        best_metric=state.best_metric,
        test_loss=test_loss,
        trainable_parameters=setup.count.trainable,
        total_parameters=setup.count.total,
        route=run.scorer.route,  # type: ignore[arg-type]
        seconds=round(time.perf_counter() - started, 3),
        loss_plot=str(folder / "loss.png"),
        history=list(state.log_history),
    )
    run_folder.write_end(folder, "finished", result.as_dict())
    return result


def assemble(
    setup: Setup, folder: Path, device: torch.device, checkpoints: Any, command: str, *, trust_remote_code: bool = False
) -> Fit:
    """Weights, method, scorer, engine, optimizer, schedule and callbacks, put together for the loop."""
    from luthier.model.method import count_parameters
    from luthier.model.tokenizers.repair import fit_model
    from luthier.scoring.scorer import Scorer
    from luthier.training.callbacks import Bridge, make_callbacks
    from luthier.training.engines.single import build as build_engine
    from luthier.training.interruption import StopRequest
    from luthier.training.loop import Fit
    from luthier.training.metrics_log import MetricsLog
    from luthier.training.optimization import make_optimizer, make_scheduler

    config = setup.config
    callbacks = make_callbacks(config)
    model, base_name = _base_model(setup, folder, device, trust_remote_code)
    for change in fit_model(model, setup.tokenizer, setup.repaired):
        say(f"model: {change}")
    tuned = setup.method.apply(model, setup.apply_settings(base_name))
    setup.count = count_parameters(tuned)
    _checkpoint_gradients(model, config)
    model.config.use_cache = False
    scorer = Scorer(tuned, config.model.attention, setup.tokenizer.pad_token_id or 0)
    if scorer.route == "padded" and config.model.attention == "auto":
        say(f"attention: padded rows, because {scorer.finding.reason}")
    engine = build_engine(config.training, device)
    prepared = engine.prepare(scorer)
    optimizer = make_optimizer(config, tuned)
    scheduler = make_scheduler(config, optimizer, setup.schedule.total_steps)
    bridge = Bridge(config, setup.schedule, callbacks)
    bridge.attach(tuned, setup.tokenizer, optimizer, scheduler)
    bridge.fire("init_end")
    return Fit(
        config=config,
        schedule=setup.schedule,
        stage=setup.stage,
        engine=engine,
        scorer=prepared,
        model=tuned,
        optimizer=optimizer,
        scheduler=scheduler,
        bridge=bridge,
        checkpoints=checkpoints,
        metrics=MetricsLog(folder / "metrics.jsonl"),
        train=setup.data.train,
        validation=setup.data.validation,
        save_model=lambda place: _save_model(setup, tuned, place),
        stop=StopRequest(),
        report=lambda step, values: None,
        say=say,
        resume_command=f"{command} --resume",
    )


def _base_model(setup: Setup, folder: Path, device: torch.device, trust_remote_code: bool) -> tuple[Any, str]:
    """The model to train, and what an adapter names as its base.

    A model that is itself an adapter is merged first; an adapter on top of that needs a base that exists, so the
    merged one is written into the run's folder.
    """
    from luthier.foundation.files import whole_folder
    from luthier.model import loading
    from luthier.model.inspection import is_model_folder
    from luthier.model.merging import merge

    training = setup.config.training
    dtype = loading.choose_dtype(setup.config.model.dtype, setup.model_config, device)
    if setup.method.saves == "model" and not (training.bf16 or training.fp16 or training.pure_bf16):
        import torch

        dtype = torch.float32  # float32 weights can't be multiplied with 16-bit activations without autocast
    source = setup.source
    if source.adapter is None:
        return loading.weights_at(source.base, dtype, trust_remote_code=trust_remote_code), source.base_name
    base = folder / "base"
    if setup.method.saves == "model":
        return merge(loading.load(source, dtype, trust_remote_code=trust_remote_code)), ""
    if not is_model_folder(base):
        say(f"model: {source.adapter} is merged into its base, and written to {base} as the new adapter's base")
        merged = merge(loading.load(source, dtype, trust_remote_code=trust_remote_code))
        with whole_folder(base) as building:
            merged.save_pretrained(building)
            setup.tokenizer.save_pretrained(building)
    return loading.weights_at(base, dtype, trust_remote_code=trust_remote_code), str(base.absolute())


def _checkpoint_gradients(model: Any, config: RunConfig) -> None:
    if not config.training.gradient_checkpointing:
        return
    try:
        model.activation_checkpointing_enable({"use_reentrant": False})
    except ValueError as error:
        raise ModelError(
            f"{type(model).__name__} has no gradient checkpointing.", "Set training.gradient_checkpointing to false."
        ) from error


def _save_model(setup: Setup, model: nn.Module, folder: Path) -> None:
    """Trained weights, tokenizer with its template, and generation_config: enough to stand wherever a model may."""
    from luthier.scoring.scorer import transformers_model

    setup.method.save(model, folder)
    setup.tokenizer.save_pretrained(folder)
    generation = transformers_model(model).generation_config
    if generation is not None:
        generation.save_pretrained(folder)


def _write_final(run: Fit, folder: Path, setup: Setup) -> None:
    """final/: the trained model with a model card, sealed like a checkpoint."""
    import shutil

    from luthier.commands.model_card import model_card
    from luthier.foundation.files import whole_folder, write_text
    from luthier.training.checkpoints import seal

    final = folder / "final"
    with whole_folder(final) as building:
        run.save_model(building)
        write_text(building / "README.md", model_card(setup.config, setup.source.base_name, run.bridge.state))
        seal(building, {"step": run.bridge.state.global_step, "fingerprints": run.checkpoints.fingerprints})
        shutil.rmtree(final, ignore_errors=True)  # of a finished run that was gone on with


def checkpoint_bytes(setup: Setup) -> int:
    """About what a checkpoint takes: weights (all of them or the trained ones) and two AdamW moments, in float32, and 16 MB beside."""
    weights = setup.count.total if setup.method.saves == "model" else setup.count.trainable
    return 4 * weights + 8 * setup.count.trainable + 16 * 1024**2


def _report_to(run: Fit, progress: TrainingProgress) -> None:
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


def warn_of_slow_precision(config: RunConfig, device: torch.device, say: Callable[[str], None]) -> None:
    """Say what a precision costs that this device can't do fast, measured now."""
    from luthier.foundation.devices import fast_precisions, matmul_gflops

    training = config.training
    wanted = {
        "bfloat16": training.bf16 or training.pure_bf16 or config.model.dtype == "bfloat16",
        "float16": training.fp16 or config.model.dtype == "float16",
    }
    for name, asked in wanted.items():
        if asked and name not in fast_precisions(device):
            slow, fast = matmul_gflops(name, device), matmul_gflops("float32", device)
            say(
                f"warning: this device has no {name} units: matrix products run at {slow:.1f} GFLOP/s instead of {fast:.0f} in "
                f"float32, {fast / slow:.0f} times slower. Leave training.bf16, fp16, pure_bf16 and model.dtype unset here."
            )


@contextmanager
def _end_noted(folder: Path) -> Iterator[None]:
    """run.json says how a run ended, whatever the end."""
    from luthier.foundation.errors import Interrupted

    try:
        yield
    except Interrupted:
        run_folder.write_end(folder, "interrupted", {})
        raise
    except BaseException as error:
        try:
            run_folder.write_end(folder, "failed", {"error": str(error)})
        except OSError as second:  # a full disk: the error that matters is the first
            say(f"run.json could not be written: {second}")
        raise


@contextmanager
def _memory_explained(config: RunConfig, checkpoints: Path, command: str) -> Iterator[None]:
    """An out-of-memory error says what was kept and which settings to change."""
    import torch

    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error)
        exhausted = isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
            mark in text
            for mark in ("can't allocate memory", "not enough memory", "Cannot allocate memory", "out of memory")
        )
        if isinstance(error, LuthierError) or not exhausted:
            raise
        training = config.training
        advice = []
        if training.per_device_train_batch_size > 1:
            advice.append(
                f"training.per_device_train_batch_size={training.per_device_train_batch_size // 2} "
                f"training.gradient_accumulation_steps={training.gradient_accumulation_steps * 2}"
            )
        if not training.gradient_checkpointing:
            advice.append("training.gradient_checkpointing=true")
        advice.append(f"data.cutoff_length={max(2, config.data.cutoff_length // 2)}")
        if config.method.name == "full":
            advice.append("method=lora")
        kept = sorted(checkpoints.glob("step-*"))
        raise TrainingError(
            f"memory ran out: {(text.splitlines() or ['MemoryError'])[0][:200]}"
            + (f" {kept[-1].name} is whole and kept." if kept else " No checkpoint had been written yet."),
            f"Try, one after another: {'; '.join(advice)}." + (f" Then go on with: {command} --resume" if kept else ""),
        ) from error


def command_line(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str]) -> str:
    """The command that starts the same run."""
    parts = ["luthier", "train"]
    if isinstance(source, (str, Path)):
        parts.append(str(source))
    elif source is not None:
        parts.append("CONFIG")
    return shlex.join([*parts, *overrides])


def say(text: str) -> None:
    """A line for the person who waits."""
    logging.getLogger(__name__).debug(text)
    print(text, file=sys.stderr, flush=True)


def _say_what_next(result: TrainResult, config: RunConfig) -> None:
    say(
        f"Done: {result.steps} steps in {result.seconds:.0f} s, mean loss {result.train_loss:.4f}"
        + (f", test loss {result.test_loss:.4f}" if result.test_loss is not None else "")
        + "."
    )
    say(f"  model:      {result.final}")
    say(f"  loss curve: {result.loss_plot}")
    say(f"  talk to it: luthier chat {shlex.quote(result.output_dir)}")
