"""Out of memory: what was kept, and which settings to change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from luthier.config.schema import RunConfig
from luthier.foundation.errors import LuthierError, TrainingError
from luthier.scoring.trunk import MAKING


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
        in_trunk = MAKING in getattr(error, "__notes__", ())
        advice = ["training.trunk_cache_limit_gib=0"] if in_trunk else []
        if training.memory_budget_gib is not None:  # a number of tokens beside it would be refused
            advice.append(f"training.memory_budget_gib={0.75 * training.memory_budget_gib:.3g}")
        elif isinstance(training.tokens_per_batch, int):
            advice.append(f"training.tokens_per_batch={max(1, training.tokens_per_batch // 2)}")
        elif training.per_device_train_batch_size > 1:
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
            f"Try, one after another: {'; '.join(advice)}." + (f" Then go on with: {resume_command}" if kept else ""),
        ) from error
