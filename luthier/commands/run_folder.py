"""A run's folder: whether it may be used, what it says about itself, and what is removed to start anew."""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from luthier import __version__
from luthier.config.loading import dump, dump_yaml
from luthier.config.schema import RunConfig
from luthier.foundation.errors import UserError
from luthier.foundation.files import write_json, write_text

FORMAT_VERSION = 1
RUN_FILE = "run.json"
CONFIG_FILE = "config.yaml"
# what `train` writes, and what --overwrite removes: nothing else in the folder is touched
FILES = (RUN_FILE, CONFIG_FILE, "metrics.jsonl", "trainer_state.json", "loss.png", "rejected.jsonl")
FOLDERS = ("checkpoints", "final", "base")
LIBRARIES = ("torch", "transformers", "peft", "tokenizers", "datasets", "safetensors")
# a resumed run must be the run it goes on with
FIXED = ("model", "data", "stage", "method")


def check_claim(folder: Path, *, resume: bool, overwrite: bool, command: str) -> None:
    """Whether a run may use the folder; changes nothing.

    Raises:
        UserError: it holds another run, and neither --resume nor --overwrite was given; or both were.
    """
    if resume and overwrite:
        raise UserError("--resume and --overwrite exclude each other.", "Go on with the run, or start it anew.")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"output_dir {str(folder)!r} is a file.", "Choose a folder.")
    held = holds(folder)
    if held and not (resume or overwrite):
        raise UserError(
            f"output_dir {str(folder)!r} holds another run ({', '.join(held)}).",
            f"Choose another output_dir, go on with `{command} --resume`, or start anew with --overwrite, which removes it.",
        )


def claim(folder: Path, *, overwrite: bool) -> None:
    """Make the folder, and with `overwrite` remove what an earlier run left: only what `train` writes."""
    for name in holds(folder) if overwrite else ():
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    folder.mkdir(parents=True, exist_ok=True)


def holds(folder: Path) -> list[str]:
    """What of a run is in the folder."""
    return [name for name in (*FILES, *FOLDERS) if (folder / name).exists()]


def config_fingerprint(config: RunConfig) -> str:
    """Hash of everything the resolved config says."""
    return hashlib.sha256(json.dumps(dump(config), sort_keys=True).encode()).hexdigest()


def versions() -> dict[str, str]:
    """luthier's version, Python's, and those of the libraries that decide about bits."""
    return {
        "luthier": __version__,
        "python": sys.version.split()[0],
        **{name: metadata.version(name) for name in LIBRARIES},
    }


def write_start(
    folder: Path, config: RunConfig, fingerprints: Mapping[str, str], hardware: Mapping[str, Any], command: str
) -> None:
    """config.yaml and run.json at a run's start."""
    write_text(folder / CONFIG_FILE, dump_yaml(config))
    write_json(
        folder / RUN_FILE,
        {
            "format_version": FORMAT_VERSION,
            "status": "running",
            "versions": versions(),
            "fingerprints": dict(fingerprints),
            "hardware": dict(hardware),
            "command": command,
            "results": {},
        },
    )


def write_end(folder: Path, status: str, results: Mapping[str, Any]) -> None:
    """run.json at a run's end: finished, interrupted or failed."""
    facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    write_json(folder / RUN_FILE, {**facts, "status": status, "results": dict(results)})


def check_same_run(
    folder: Path,
    config: RunConfig,
    fingerprints: Mapping[str, str],
    saved: Mapping[str, str],
    hardware: Mapping[str, Any],
    say: Callable[[str], None],
) -> None:
    """Compare a run with the one whose checkpoint it goes on from.

    Changed settings of the loop, versions and hardware are announced; another model, method, stage or data is refused.

    Raises:
        UserError: with what differs.
    """
    before = (
        yaml.safe_load((folder / CONFIG_FILE).read_text(encoding="utf-8")) if (folder / CONFIG_FILE).exists() else {}
    )
    changes = differences(before, dump(config))
    refused = [change for change in changes if change.split(".")[0].split(":")[0] in FIXED]
    names = {"data": "the data's bytes or tokens", "model": "the model's files"}
    refused += [
        f"{names[key]} are not those of the checkpoint"
        for key in names
        if not changes and saved.get(key) != fingerprints[key]
    ]
    if refused:
        raise UserError(
            f"the run in {folder} can't go on, since this is another one: {'; '.join(refused)}.",
            "Put it back as it was, choose another output_dir, or start anew with --overwrite.",
        )
    for change in changes:
        say(
            f"changed since the checkpoint: {change}; the run goes on, but is not the one that an unbroken run would be"
        )
    facts = json.loads((folder / RUN_FILE).read_text(encoding="utf-8")) if (folder / RUN_FILE).exists() else {}
    for title, old, new in (
        ("versions", facts.get("versions", {}), versions()),
        ("hardware", facts.get("hardware", {}), dict(hardware)),
    ):
        for change in differences(old, json.loads(json.dumps(new))):
            say(f"{title} differ from the run's start: {change}; results may differ in the last bits")


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
