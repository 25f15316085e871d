"""A run's folder: whether it may be used, what it says about itself, and what is removed to start anew."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier import __version__
from luthier.config.files import read_file
from luthier.config.loading import dump, dump_yaml
from luthier.config.schema import RunConfig
from luthier.foundation.errors import UserError
from luthier.foundation.files import read_json, unwritable, write_json, write_text

if TYPE_CHECKING:
    from luthier.training.checkpoints import Checkpoint

FORMAT_VERSION = 1
# both ways to say it: the same words reach who types a command and who calls `luthier.train`
RESUME, OVERWRITE = "--resume (resume=True in Python)", "--overwrite (overwrite=True in Python)"
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
TRAINER_STATE = "trainer_state.json"  # as in a checkpoint, after the run's last step
# what `train` writes, and what --overwrite removes: nothing else in the folder is touched
FILES = (
    RUN_FILE,
    CONFIG_FILE,
    "metrics.jsonl",
    TRAINER_STATE,
    "loss.png",
    "rejected.jsonl",
    "predictions.jsonl",
)
TRUNK = "trunk"  # gone when the run ends
FOLDERS = ("checkpoints", "final", "base", "tensorboard", TRUNK)
LEARNT = ("checkpoints", "final", "metrics.jsonl")  # a folder with none of these holds nothing worth keeping
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "datasets", "safetensors")
# a resumed run must be the run it goes on with
FIXED = (
    "model.dtype:",
    "model.attention:",
    "model.continue_adapter:",
    "model.quantization",
    "model.rope_scaling",
    "model.config_overrides",
    "model.from_scratch",
    "data.",
    "stage.",
    "method.",
    "training.pure_bf16:",
    "training.optim.",
    # which examples form a step, so that a place within an epoch is another one
    "training.grouping: within_buffer ->",
    "training.grouping: within_step -> within_buffer",
    "training.grouping: off -> within_buffer",
    "training.grouping_buffer_size:",
)


# of a folder with final/, which is written when the last step is done, and no end noted
TRAINED = (
    "its training came to the end and final/ is whole, what follows did not (data.test is measured, its files are written): "
    "`luthier evaluate` measures it"
)


def check_claim(folder: Path, *, resume: bool, overwrite: bool, resume_command: str) -> None:
    """Whether a run may use the folder; changes nothing.

    Raises:
        UserError: it can't be written, or holds another run and neither --resume nor --overwrite was given; or what
            it holds was not written by luthier, and would be lost.
    """
    if resume and overwrite:
        raise UserError(f"{RESUME} and {OVERWRITE} exclude each other.", "Go on with the run, or start it anew.")
    if problem := unwritable(folder):
        raise UserError(f"output_dir {str(folder)!r} can't be used: {problem}.", "Choose another output_dir.")
    held = holds(folder)
    if not held:
        return
    if not (folder / RUN_FILE).exists():
        raise UserError(
            f"output_dir {str(folder)!r} holds {', '.join(held)}, which no run of luthier's left there (it has no {RUN_FILE}).",
            "Choose another output_dir: a run writes files of these names.",
        )
    learnt = [name for name in LEARNT if (folder / name).exists()]
    alone = (folder / "final").exists() and not any((folder / "checkpoints").glob("step-*"))
    if resume and alone and read_json(folder / RUN_FILE).get("status") != "finished":
        raise nothing_to_go_on_from(folder, TRAINED)
    if learnt and not (resume or overwrite):
        in_python = "resume=True" in resume_command
        going_on = f"`{resume_command}`" + ("" if in_python else " (resume=True in Python)")
        raise UserError(
            f"output_dir {str(folder)!r} holds another run ({', '.join(learnt)}).",
            f"Choose another output_dir, go on with {going_on}, or start anew with {OVERWRITE}, which removes it.",
        )


def nothing_to_go_on_from(folder: Path, why: str) -> UserError:
    """The error for a folder with a model and no checkpoint; `why` it can't be taken for a run that has nothing left to do."""
    return UserError(
        f"output_dir {str(folder)!r} holds a model without checkpoints, so there is nothing to go on from: {why}.",
        f"Choose another output_dir, or start anew with {OVERWRITE}, which removes it.",
    )


def check_not_inside(folder: Path, parts: Sequence[Path]) -> None:
    """Refuse to remove a run that the new one starts from.

    Raises:
        UserError: a part of the model is in what --overwrite would remove.
    """
    doomed = [(folder / name).resolve() for name in holds(folder)]
    for part in parts:
        if any(path == part.resolve() or path in part.resolve().parents for path in doomed):
            raise UserError(
                f"{OVERWRITE} would remove {part}, which is the model to start from.", "Choose another output_dir."
            )


def clear(folder: Path) -> None:
    """Remove what an earlier run left: only what `train` writes. run.json, which says whose it is, goes last."""
    for name in sorted(holds(folder), key=lambda name: name == RUN_FILE):
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Make a run's folder, and keep it to one process.

    Raises:
        UserError: it can't be made, or another process trains into it now.
    """
    from filelock import FileLock, Timeout

    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"output_dir {str(folder)!r} can't be made: {error.strerror}.", "Choose another output_dir."
        ) from error
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise UserError(
            f"another process is training into {str(folder)!r} now.", "Wait for it, or choose another output_dir."
        ) from error
    try:
        yield
    finally:
        (folder / ".lock").unlink(missing_ok=True)  # while it is held: whoever waits for it finds it gone
        lock.release()


def holds(folder: Path) -> list[str]:
    """What of a run is in the folder."""
    return [name for name in (*FILES, *FOLDERS) if (folder / name).exists()]


def config_fingerprint(config: RunConfig) -> str:
    """Hash of everything the resolved config says."""
    return hashlib.sha256(json.dumps(dump(config), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """luthier's version, Python's, and those of the libraries that decide about bits, compiled kernels among them."""
    from luthier.scoring.compiled import compiler

    return {
        "luthier": __version__,
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in LIBRARIES},
        "kernels": compiler.made_by(),
    }


def write_start(
    folder: Path,
    config: RunConfig,
    base_folder: Path | None,
    fingerprints: Mapping[str, str],
    hardware: Mapping[str, Any],
    command: str,
    batches: Mapping[str, Any],
    labels: Sequence[str],
    day: str,
) -> None:
    """config.yaml and run.json at a run's start; `base_folder` is where the model it starts from stands on this
    machine, None if that is no folder of whole weights; `batches` is what was settled of them (see `batching.py`);
    `labels` are the classes in the order of their numbers, where rows have some."""
    write_text(folder / CONFIG_FILE, dump_yaml(config))
    write_json(
        folder / RUN_FILE,
        {
            "format_version": FORMAT_VERSION,
            "status": "running",
            "versions": versions(),
            "base_folder": str(base_folder.absolute()) if base_folder is not None else None,
            "fingerprints": dict(fingerprints),
            "hardware": dict(hardware),
            "batches": dict(batches),
            "labels": list(labels),
            "command": command,
            "day": day,
            "results": {},
        },
    )


def day_of(folder: Path, *, resume: bool) -> date:
    """The day that a run's chat template is told, where it writes the date: that of the run's start, also for whoever goes on
    with it later, for other tokens would make it another run.

    Raises:
        UserError: run.json is broken.
    """
    noted = read_json(folder / RUN_FILE).get("day") if resume and (folder / RUN_FILE).exists() else None
    try:
        return date.fromisoformat(noted) if noted is not None else date.today()
    except (TypeError, ValueError) as error:
        raise UserError(
            f"{folder / RUN_FILE}: day is {noted!r}, not a date.",
            "It is written by luthier: restore it, or start anew.",
        ) from error


def write_end(folder: Path, status: str, results: Mapping[str, Any]) -> None:
    """run.json at a run's end: finished, interrupted or failed."""
    write_json(folder / RUN_FILE, {**read_json(folder / RUN_FILE), "status": status, "results": dict(results)})


def check_same_run(
    folder: Path,
    config: RunConfig,
    fingerprints: Mapping[str, str],
    saved: Mapping[str, str],
    hardware: Mapping[str, Any],
    say: Callable[[str], None],
) -> list[str]:
    """Compare a run with the one whose checkpoint it goes on from; returns the settings that changed.

    Changed settings of the loop, versions and hardware are announced; another model, method, stage or data is refused.

    Raises:
        UserError: with what differs.
    """
    before = read_file(folder / CONFIG_FILE) if (folder / CONFIG_FILE).exists() else {}
    changes = differences(before, dump(config))
    refused = [change for change in changes if change.startswith(FIXED)]
    if saved.get("model") != fingerprints["model"]:
        refused.append("the model's files are not those of the checkpoint")
    if saved.get("data") != fingerprints["data"]:
        refused.append("the data's bytes or tokens, or the seed that splits them, are not those of the checkpoint")
    if refused:
        raise UserError(
            f"the run in {folder} can't go on, since this is another one: {'; '.join(refused)}.",
            f"Put it back as it was, choose another output_dir, or start anew with {OVERWRITE}.",
        )
    for change in changes:
        say(
            f"changed since the checkpoint: {change}; the run goes on, but is not the one that an unbroken run would be"
        )
    facts = read_json(folder / RUN_FILE) if (folder / RUN_FILE).exists() else {}
    for title, old, new in (
        ("versions", facts.get("versions", {}), versions()),
        ("hardware", facts.get("hardware", {}), dict(hardware)),
    ):
        for change in differences(old, json.loads(json.dumps(new))):
            say(f"{title} differ from the run's start: {change}; results may differ in the last bits")
    return changes


@dataclass(frozen=True, slots=True)
class Finished:
    """A run that came to its end.

    Args:
        results: what run.json says it gave.
        end: its state after the last step, read as a checkpoint's is, with final/'s manifest.
    """

    results: dict[str, Any]
    end: Checkpoint


def finished(folder: Path, newest: Checkpoint | None, checkpoints: Sequence[Path]) -> Finished | None:
    """How the run in a folder finished: run.json says that it did, final/ is whole and of the last step. None: it has
    something left to do.

    Args:
        newest: its newest checkpoint that verifies: it may be of an earlier step, where saves are seldom.
        checkpoints: all there are, oldest first: where one was passed over as damaged, it is left to be written anew.

    Raises:
        UserError: run.json or trainer_state.json is broken.
    """
    from luthier.model.hub import MANIFEST
    from luthier.training.checkpoints import Checkpoint, find_fault

    facts = read_json(folder / RUN_FILE) if (folder / RUN_FILE).exists() else {}
    final, steps = folder / "final", (facts.get("results") or {}).get("steps", -1)
    passed_over = newest is not None and newest.path != checkpoints[-1]
    if facts.get("status") != "finished" or passed_over or (newest is not None and newest.step > steps):
        return None
    if not (folder / TRAINER_STATE).exists() or find_fault(final):
        return None
    read_json(folder / TRAINER_STATE)  # a broken one is told as such
    manifest = read_json(final / MANIFEST)
    return Finished(facts["results"], Checkpoint(folder, steps, manifest)) if manifest.get("step") == steps else None


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two nested values differ: `training.seed: 1 -> 2`."""
    if isinstance(before, dict) and isinstance(after, dict):
        keys = dict.fromkeys([*before, *after])
        return [
            change
            for key in keys
            for change in differences(before.get(key), after.get(key), f"{place}.{key}" if place else str(key))
        ]
    return [] if before == after else [f"{place}: {before} -> {after}"]
