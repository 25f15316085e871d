"""`luthier evaluate MODEL --harness TASKS`: a loaded model handed to EleutherAI's lm-evaluation-harness, where it is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.schema import ModelConfig
from luthier.evaluation.opening import find_speaker, open_weights
from luthier.foundation.errors import UserError, import_extra
from luthier.foundation.files import need_new, write_json
from luthier.model import loading


@dataclass(frozen=True)
class HarnessResult:
    """What the harness gave.

    Args:
        results: of each task, its metrics by the harness's names.
        versions: of the tasks.
    """

    model: str
    results: Mapping[str, Mapping[str, Any]]
    versions: Mapping[str, Any]
    out: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"kind": "luthier harness", "format_version": 1, **vars(self)}


def harness(
    model: ModelConfig,
    tasks: Sequence[str],
    *,
    shots: int | None = None,
    batch_size: int = 8,
    out: Path | None = None,
    overwrite: bool = False,
    trust_remote_code: bool = False,
) -> HarnessResult:
    """Run the harness's tasks on a model; it fetches its data sets itself.

    Args:
        shots: examples before each question; None: what each task says.

    Raises:
        UserError: the harness is not installed, knows no such task, or `out` is there already.
    """
    if not tasks:
        raise UserError("--harness names no task.", "Such as --harness piqa,arc_easy.")
    if out is not None:
        need_new(out, "--out", overwrite=overwrite)
    library: Any = import_extra("lm_eval", package="lm-eval", extra="harness", purpose="--harness")
    wrapper: Any = import_extra("lm_eval.models.huggingface", package="lm-eval", extra="harness", purpose="--harness")
    known = set(library.tasks.TaskManager().all_tasks)
    unknown = [task for task in tasks if task not in known]
    if unknown:
        raise UserError(
            f"the harness knows no task {', '.join(unknown)}.",
            "`lm-eval ls tasks` (or lm_eval --tasks list) names them.",
        )
    source = find_speaker(model)
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    read, _ = open_weights(source, trust_remote_code=trust_remote_code)
    wrapped = wrapper.HFLM(pretrained=read, tokenizer=tokenizer, batch_size=batch_size)
    found = library.simple_evaluate(model=wrapped, tasks=list(tasks), num_fewshot=shots)
    result = HarnessResult(
        model.name, found["results"], dict(found.get("versions", {})), str(out) if out is not None else None
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, result.as_dict())
    return result
