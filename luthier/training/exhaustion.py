"""Out of memory, or of room on the disk: what was kept, and what to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from luthier.config.schema import RunConfig
from luthier.foundation.errors import CheckpointError, LuthierError, TrainingError
from luthier.foundation.files import free_bytes, human_bytes, is_disk_full
from luthier.scoring.trunk import MAKING

READING = (
    "It was while rows were read without learning from them: for a preference's reference, or an evaluation."  # a note
)


@contextmanager
def reading() -> Iterator[None]:
    """Inside, rows are read without learning from them: where memory runs out, its error says so."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        error.add_note(READING)
        raise


@contextmanager
def memory_explained(config: RunConfig, checkpoints: Path, resume_command: str) -> Iterator[None]:
    """An out-of-memory error says what was kept and which settings to change."""
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
        notes = getattr(error, "__notes__", ())
        advice = ["training.trunk_cache_limit_gib=0"] if MAKING in notes else []
        if READING in notes:  # steps' settings do not act there
            if training.per_device_eval_batch_size > 1:
                advice.append(f"training.per_device_eval_batch_size={training.per_device_eval_batch_size // 2}")
        elif training.memory_budget_gib is not None:  # a number of tokens beside it would be refused
            advice.append(f"training.memory_budget_gib={0.75 * training.memory_budget_gib:.3g}")
        elif isinstance(training.tokens_per_batch, int):
            advice.append(f"training.tokens_per_batch={max(1, training.tokens_per_batch // 2)}")
        elif training.per_device_train_batch_size > 1:
            smaller = training.per_device_train_batch_size // 2 if training.per_device_train_batch_size % 2 == 0 else 1
            batches = training.gradient_accumulation_steps * training.per_device_train_batch_size // smaller
            advice.append(  # a step of as many examples: a checkpoint of another is not gone on from
                f"training.per_device_train_batch_size={smaller} training.gradient_accumulation_steps={batches}"
            )
        if not training.gradient_checkpointing and READING not in notes:
            advice.append("training.gradient_checkpointing=true")
        anew = [f"data.cutoff_length={max(2, config.data.cutoff_length // 2)}"]  # these make it another run
        if config.method.name == "full":
            anew.append("method=lora")
        kept = _kept(checkpoints)
        if kept:
            remedy = (
                f"Try, one after another, with {resume_command}: {'; '.join(advice)}. Or start" if advice else "Start"
            )
            remedy += f" anew, with --overwrite and {' or '.join(anew)}."
        else:
            remedy = f"Try, one after another: {'; '.join([*advice, *anew])}."
        raise TrainingError(
            f"memory ran out: {(text.splitlines() or ['MemoryError'])[0][:200]} "
            + (f"{kept} is whole and kept." if kept else "No checkpoint had been written yet."),
            remedy,
        ) from error


@contextmanager
def disk_explained(folder: Path, checkpoints: Path, trunk: Path, resume_command: str) -> Iterator[None]:
    """A full disk, whatever was being written, says what was kept and how to go on.

    Args:
        folder: the run's. checkpoints, trunk: folders in it.

    Raises:
        CheckpointError: inside, the disk or the quota was used up.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, LuthierError) or not is_disk_full(error):
            raise
        named = error.filename if isinstance(error, OSError) else None
        place, kept = Path(named) if isinstance(named, str) else folder, _kept(checkpoints)
        # what the run would do without, and keeps on the same disk
        spared = f" training.trunk_cache_limit_gib=0 does without {trunk}." if trunk.is_dir() else ""
        raise CheckpointError(
            f"the disk is full: the run could not write to {place} ({human_bytes(free_bytes(place))} free). "
            + (f"{kept} is whole and kept." if kept else "No checkpoint had been written yet."),
            f"Make room, then go on with: {resume_command}; training.save_total_limit keeps fewer checkpoints.{spared}",
        ) from error


def _kept(checkpoints: Path) -> str | None:
    """The name of the newest checkpoint; one that has its name is whole."""
    return max((path.name for path in checkpoints.glob("step-*")), default=None)
