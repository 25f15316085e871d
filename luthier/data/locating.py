"""Which files hold an entry's rows: a file, a glob, a folder, or a folder that `datasets` wrote with save_to_disk."""

from __future__ import annotations

import glob
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.plugins import SOURCES
from luthier.config.schema import DataEntry
from luthier.data.detection import source_of
from luthier.data.sources._compressed import SUFFIXES as COMPRESSED
from luthier.data.sources._compressed import inner_path
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import need_file

SHOWN_NAMES = 8
# what stands beside data files and is none
BESIDE = ("readme", "license", "licence", "citation", "changelog", "sources")


@dataclass(frozen=True, slots=True)
class Located:
    """The files that hold an entry's rows, in order.

    Args:
        named: what rows are said to come from, where the files are a cache's own; None: each file itself.
    """

    files: tuple[Path, ...]
    named: str | None = None


def locate(entry: DataEntry) -> Located:
    """The files of an entry.

    Raises:
        DataError: missing, empty, unreadable, of no known type, or of several types at once.
    """
    path = Path(entry.path)
    if not path.exists() and glob.has_magic(entry.path):
        return Located(_matches(entry.path))
    try:
        need_file(path, "the data file")
    except UserError as error:
        raise DataError(error.problem, error.remedy) from error
    if not path.is_dir():
        _type_of(path)
        return Located((path,))
    if (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        return Located(_saved(path))
    return Located(_children(path))


def _type_of(path: Path) -> str:
    """The name of the module that reads a file.

    Raises:
        DataError: none does, or it is a compressed file of a type that has a compression of its own.
    """
    module = source_of(inner_path(path))
    if inner_path(path) != path and getattr(module, "BINARY", False):
        raise DataError(
            f"{path} is a compressed {module.Options().name} file, a type that is compressed inside.", "Decompress it."
        )
    return str(module.__name__)


def _matches(pattern: str) -> tuple[Path, ...]:
    """The files a glob matches, hidden ones left out."""
    files = [Path(match) for match in sorted(glob.glob(pattern, recursive=True)) if Path(match).is_file()]
    if not files:
        raise DataError(
            f"the pattern {pattern!r} matches no file.",
            "Paths are relative to where luthier runs; ** goes into folders.",
        )
    return _of_one_type(files, f"the pattern {pattern!r} matches")


def _children(folder: Path) -> tuple[Path, ...]:
    """A folder's files, hidden ones and such as README.md left out."""
    files = sorted(
        child
        for child in folder.iterdir()
        if child.is_file() and not child.name.startswith((".", "_")) and not child.name.lower().startswith(BESIDE)
    )
    if not files:
        found = ", ".join(sorted(child.name for child in folder.iterdir())[:SHOWN_NAMES]) or "nothing"
        raise DataError(
            f"the data path {str(folder)!r} is a folder, which holds {found}, and no data files.",
            f"Name its files, or a pattern such as {folder}/**/*.jsonl.",
        )
    return _of_one_type(files, f"the folder {str(folder)!r} holds")


def _of_one_type(files: list[Path], found: str) -> tuple[Path, ...]:
    known = {suffix for name in SOURCES.names() for suffix in SOURCES.load(name).SUFFIXES}
    endings = Counter(inner_path(file).suffix.lower() for file in files)
    types = {_type_of(file) for file in files} if set(endings) <= known else set()
    if len(types) != 1:
        counts = ", ".join(f"{ending or 'no ending'} ({count})" for ending, count in sorted(endings.items()))
        raise DataError(
            f"{found} files that are not all of one known type: {counts}.",
            f"Name the ones that are meant with a pattern such as *.jsonl; known endings: {', '.join(sorted(known))}, "
            f"text types also with {' or '.join(COMPRESSED)}.",
        )
    return tuple(files)


def _saved(folder: Path) -> tuple[Path, ...]:
    """The Arrow files of a data set that `save_to_disk` wrote, in its order."""
    described = folder / "dataset_dict.json"
    if described.is_file():
        splits = [str(name) for name in _json(described).get("splits") or ["train"]]
        raise DataError(
            f"{folder} holds several splits: {', '.join(splits)}.", f"Name one of them, such as {folder / splits[0]}."
        )
    try:
        files = tuple(folder / str(item["filename"]) for item in _json(folder / "state.json")["_data_files"])
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{folder / 'state.json'} lists no data files, so it is not one that save_to_disk writes.",
            "Write the folder anew, or name its .arrow files with a pattern.",
        ) from error
    for file in files:
        if not file.is_file():
            raise DataError(f"{folder / 'state.json'} lists {file.name}, which is not there.", "Copy the folder whole.")
    return files


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise DataError(f"{path} can't be read as JSON: {error}.", "Was the folder copied completely?") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} is no JSON object.", "Was the folder copied completely?")
    return value
