"""`luthier evaluate MODEL --harness TASKS`: a loaded model handed to EleutherAI's lm-evaluation-harness, where it is installed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.schema import ModelConfig
from luthier.evaluation.opening import find_speaker, open_weights
from luthier.foundation.errors import UserError, import_extra
from luthier.foundation.files import finite, need_file, need_new, write_json
from luthier.model import loading

YAML = (".yaml", ".yml")
# the file itself may hold tags that only the harness reads
_TASK, _GROUP = (re.compile(rf"^{key}:[ \t]*[\"']?([^\s\"'#]+)", re.MULTILINE) for key in ("task", "group"))


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
    """Run the harness's tasks on a model; it fetches their data sets itself.

    Args:
        tasks: its names, or .yaml files of tasks of one's own; what such a file includes stands beside it.
        shots: examples before each question; None: what each task says.

    Raises:
        UserError: the harness is not installed, knows no such task or can't get its data, or `out` is there already.
    """
    if not tasks:
        raise UserError("--harness names no task.", "Such as --harness piqa,arc_easy.")
    if out is not None:
        need_new(out, "--out", overwrite=overwrite)
    evaluator, index, wrapper = map(_part, ("evaluator", "tasks", "models.huggingface"))
    files = {task: Path(task).expanduser() for task in tasks if task.endswith(YAML)}
    names = [_name_in(files[task]) if task in files else task for task in tasks]
    folders = sorted({str(file.parent) for file in files.values()})
    # a group may name the harness's own tasks
    alone = len(files) == len(tasks) and not any(
        _GROUP.search(file.read_text(encoding="utf-8")) for file in files.values()
    )
    manager = index.TaskManager(include_path=folders or None, include_defaults=not alone)
    known = set(manager.all_tasks)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(
            f"the harness knows no task {', '.join(unknown)}.",
            "`lm-eval ls tasks` names them; a task of your own is named by its .yaml file.",
        )
    source = find_speaker(model)
    tokenizer = loading.tokenizer_at(source.tokenizer, trust_remote_code=trust_remote_code)
    read, _ = open_weights(source, wish=model.dtype, trust_remote_code=trust_remote_code)
    wrapped = wrapper.HFLM(pretrained=read, tokenizer=tokenizer, batch_size=batch_size)
    try:
        found = evaluator.simple_evaluate(model=wrapped, tasks=names, num_fewshot=shots, task_manager=manager)
    except OSError as error:  # the hub is silent, or a file of the user's is not there
        raise UserError(
            f"the harness can't get the data of {', '.join(names)}: {error}",
            "Most tasks fetch theirs from the hub; a task in a .yaml file may name local files.",
        ) from error
    result = HarnessResult(
        model.name, found["results"], dict(found.get("versions", {})), str(out) if out is not None else None
    )
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_json(out, finite(result.as_dict()))
    return result


def _part(name: str) -> Any:
    """A module of the harness, whose package imports none of them by itself."""
    return import_extra(f"lm_eval.{name}", package="lm-eval", extra="harness", purpose="--harness")


def _is_group(file: Path) -> bool:
    """Whether a file describes a group, which may hold the harness's own tasks."""
    return _GROUP.search(file.read_text(encoding="utf-8")) is not None


def _name_in(file: Path) -> str:
    """The task that a file describes.

    Raises:
        UserError: it is missing, or names none.
    """
    text = need_file(file, "the harness's task").read_text(encoding="utf-8")
    found = _GROUP.search(text) or _TASK.search(text)  # in a group's file `task` lists what it holds
    if found is None:
        raise UserError(f"{file} names no task.", "A line `task: NAME` says what it is called.")
    return found[1]
