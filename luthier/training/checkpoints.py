"""Checkpoints: folders that appear whole or not at all, and are believed only when their hashes agree.

A manifest is written last, with size and hash of every file; the folder is built as a hidden sibling, flushed and
renamed. Only safetensors and JSON.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.foundation.errors import CheckpointError
from luthier.foundation.files import (
    free_bytes,
    fsync_path,
    human_bytes,
    is_disk_full,
    remove_leftovers,
    sha256_of,
    whole_folder,
    write_json,
)
from luthier.model.hub import MANIFEST

FORMAT_VERSION = 1
REPLACED = ".replaced"
STEP_NAME = re.compile(r"step-(\d{8,})$")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    step: int
    manifest: Mapping[str, Any]

    def read_json(self, name: str) -> Any:
        """One of its JSON files."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: the run's `checkpoints/`.
        keep: how many of the newest to keep; None: all.
        fingerprints: of config, data and model, written into every manifest.
    """

    def __init__(self, folder: Path, keep: int | None, fingerprints: Mapping[str, str]) -> None:
        self.folder = folder
        self.keep = keep
        self.fingerprints = dict(fingerprints)

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step stands."""
        return self.folder / f"step-{step:08d}"

    def write(self, step: int, fill: Callable[[Path], None], best: Path | None = None) -> Path:
        """Write the checkpoint of a step, verify it, and only then remove those that are too many.

        Args:
            fill: writes the files into the folder it is given.
            best: a checkpoint that is kept whatever its age.

        Raises:
            CheckpointError: the disk is full, or what was written does not read back.
        """
        path = self.path_of(step)
        aside = path.with_name(f".{path.name}{REPLACED}")
        try:
            with whole_folder(path) as building:
                fill(building)
                seal(building, {"step": step, "fingerprints": self.fingerprints})
                if (
                    path.exists()
                ):  # the same step, saved before an interruption: it goes only when this one can take its place
                    path.rename(aside)
        except Exception as error:
            _put_back(path, aside)
            if not is_disk_full(error):
                raise
            kept = [known.name for known in self.paths()]
            raise CheckpointError(
                f"the disk is full: the checkpoint of step {step} could not be written to {self.folder} "
                f"({human_bytes(free_bytes(self.folder))} free).",
                (f"{kept[-1]} is whole and kept. " if kept else "") + "Make room, then go on with --resume; "
                "training.save_total_limit keeps fewer checkpoints.",
            ) from error
        fault = find_fault(path)
        if fault:
            _put_back(path, aside)
            raise CheckpointError(
                f"the checkpoint {path} does not read back as it was written: {fault}.",
                "Check the disk; older checkpoints were kept.",
            )
        shutil.rmtree(aside, ignore_errors=True)
        self._prune(path, best)
        return path

    def _prune(self, newest: Path, best: Path | None) -> None:
        """Remove what is too old, and what stands after the newest: damaged ones that a resumed run passed over."""
        paths = self.paths()
        until_now = paths[: paths.index(newest) + 1]
        kept = until_now if self.keep is None else until_now[-self.keep :]
        for path in paths:
            if path not in kept and (best is None or path.name != best.name):
                shutil.rmtree(path)

    def paths(self) -> list[Path]:
        """Checkpoint folders, oldest first."""
        found = [
            (int(match[1]), path) for path in self.folder.glob("step-*") if (match := STEP_NAME.fullmatch(path.name))
        ]
        return [path for _, path in sorted(found)]

    def at(self, step: int) -> Checkpoint:
        """The checkpoint of a step, which `newest` has verified."""
        path = self.path_of(step)
        return Checkpoint(path, step, json.loads((path / MANIFEST).read_text(encoding="utf-8")))

    def newest(self, say: Callable[[str], None]) -> Checkpoint | None:
        """The newest checkpoint that verifies, or None where there is none at all.

        Args:
            say: told about each one that is passed over, and why.

        Raises:
            CheckpointError: there are checkpoints, and none verifies.
        """
        if self.folder.exists():
            for aside in self.folder.glob(f".step-*{REPLACED}"):
                path = aside.with_name(aside.name[1 : -len(REPLACED)])
                # of a process killed before it had read back what it wrote, or before that had taken its place
                _put_back(path, aside) if find_fault(path) else shutil.rmtree(aside)
            for leftover in {
                re.sub(r"^\.(step-\d+)\.building-.*$", r"\1", p.name) for p in self.folder.glob(".step-*")
            }:
                remove_leftovers(self.folder / leftover)
        paths = self.paths()
        for path in reversed(paths):
            fault = find_fault(path)
            if not fault:
                return self.at(int(path.name.removeprefix("step-")))
            say(f"The checkpoint {path.name} is damaged ({fault}); trying the one before.")
        if paths:
            raise CheckpointError(
                f"none of the {len(paths)} checkpoints in {self.folder} verifies.",
                "Start anew with --overwrite, or restore the files.",
            )
        return None


def _put_back(path: Path, aside: Path) -> None:
    """Give its place back to the checkpoint of a step that another was to replace, if there is one."""
    if aside.exists():
        shutil.rmtree(path, ignore_errors=True)
        aside.rename(path)


def seal(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write the manifest of a finished folder: the size and hash of every file, flushed to the disk before."""
    files = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        path.chmod(0o644)
        fsync_path(path)
        files[path.relative_to(folder).as_posix()] = {"size": path.stat().st_size, "sha256": sha256_of(path)}
    write_json(folder / MANIFEST, {"format_version": FORMAT_VERSION, **facts, "files": files})


def find_fault(folder: Path) -> str:
    """What is wrong with a sealed folder, or an empty string."""
    source = folder / MANIFEST
    try:
        manifest = json.loads(source.read_text(encoding="utf-8"))
        files = manifest["files"].items()
    except FileNotFoundError:
        return "its manifest.json is missing"
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        return "its manifest.json is broken"
    if manifest.get("format_version") != FORMAT_VERSION:
        return f"its format_version is {manifest.get('format_version')}, this luthier reads {FORMAT_VERSION}"
    if not files:
        return "its manifest.json lists no files"
    for name, facts in files:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        size = path.stat().st_size
        if size != facts["size"]:
            return f"{name} has {size} bytes instead of {facts['size']}"
        if sha256_of(path) != facts["sha256"]:
            return f"the hash of {name} does not agree with the manifest"
    return ""


def need_space(folder: Path, needed: int, free: Callable[[Path], int] = free_bytes) -> None:
    """Refuse a run whose checkpoints and final model do not fit on the disk.

    Args:
        needed: bytes of all that it has there at one time.

    Raises:
        CheckpointError: with both numbers.
    """
    available = free(folder)
    if available < needed:
        raise CheckpointError(
            f"this run's checkpoints and final model take about {human_bytes(needed)}, but only {human_bytes(available)} are "
            f"free at {folder}.",
            "Choose another output_dir, make room, keep fewer checkpoints (training.save_total_limit), or train fewer "
            "weights (method: lora).",
        )
