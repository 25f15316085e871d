"""Which files hold an entry's rows: a file, a glob, a folder, a folder that `datasets` wrote, a hub's data set."""

from __future__ import annotations

import errno
import glob
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luthier.config.data_section import DataEntry
from luthier.config.plugins import SOURCES
from luthier.config.split_slices import SplitSlice
from luthier.data.dataset_info import resolve
from luthier.data.detection import source_of
from luthier.data.hub_sets import hub_files, hub_id
from luthier.data.sources._compressed import SUFFIXES as COMPRESSED
from luthier.data.sources._compressed import inner_path
from luthier.foundation.errors import DataError, UserError
from luthier.foundation.files import need_file

SHOWN_NAMES = 8
# words in the names of files that hold no training rows
OTHER_SPLITS = frozenset({"test", "testing", "dev", "val", "valid", "validation", "eval", "evaluation"})
# what stands beside data files and is none
BESIDE = ("readme", "license", "licence", "citation", "changelog", "sources")


@dataclass(frozen=True, slots=True)
class Located:
    """The files that hold an entry's rows, in order.

    Args:
        named: what rows are said to come from, where the files are a cache's own; None: each file itself.
        other_splits: files named for another split than training's (test.jsonl), in a folder or pattern that takes them too.
    """

    entry: DataEntry
    files: tuple[Path, ...]
    named: str | None = None
    other_splits: tuple[str, ...] = ()

    @property
    def shown(self) -> str:
        """What reports call it; files that are named for another split than training's are named too."""
        about = [self.entry.split] if self.entry.split else []
        # names alone: what is shown is also read as a path
        about += [f"with {_listed([Path(name).name for name in self.other_splits])}"] if self.other_splits else []
        return self.entry.path + (f" ({', '.join(about)})" if about else "")


def locate(entry: DataEntry) -> Located:
    """The files of an entry.

    Raises:
        DataError: missing, empty, unreadable, of no known type, or of several types at once; a hub's data set that
            can't be loaded; a setting that has no effect on such an entry; a split of files that hold others too.
    """
    chosen = entry.split is not None  # by the config: a registry's own split takes all files, as LLaMA-Factory does
    entry = resolve(entry)
    path = Path(entry.path)
    split = SplitSlice.parse(entry.split).name if entry.split else None
    name = hub_name(entry)
    if name is not None:
        split = split or "train"
        files = hub_files(name, entry.subset, split, entry.folder)
        return Located(entry, files, f"{name} ({', '.join(filter(None, (entry.subset, entry.folder, split)))})")
    _refuse_hub_settings(entry)
    if not path.exists() and glob.has_magic(entry.path):
        files = _matches(entry.path)
    else:
        files, split = _local(path, split)
    if split not in (None, "train"):
        raise DataError(
            f"{entry.path} has no splits, so there is no {split!r} in it.",
            f"A slice alone is written split: '[:70%]'; found {entry.split!r}.",
        )
    others = _named_for_other_splits(path, files)
    others = others if len(others) < len(files) else ()  # else they are what is meant
    if others and chosen and split is not None:
        raise DataError(
            f"{path} has no splits, and its files are named for several ({_listed(others)}): split: train would take them all.",
            "Name the files that are meant, with a path or a pattern; without a split all are taken, whatever their names (a "
            "slice of them is split: '[:500]').",
        )
    return Located(entry, files, other_splits=others)


def local_files(entries: Iterable[DataEntry]) -> list[Path]:
    """The files here that hold the rows of entries, none of a hub's data sets among them: those are a cache's own.

    Raises:
        DataError: as `locate` does.
    """
    return [file for entry in entries if hub_name(resolve(entry)) is None for file in locate(entry).files]


def hub_name(entry: DataEntry) -> str | None:
    """The id of the hub's data set that an entry names (with `modelscope:` where it is that hub's), None where it names files."""
    path = Path(entry.path)
    return None if path.exists() or path.suffix.lower() in _known() else hub_id(entry.path)


def check_local(entry: DataEntry) -> None:
    """Look an entry's files up where that needs no hub, so that a missing one is told with what else is wrong.

    Raises:
        DataError: as `locate` does.
    """
    if hub_name(resolve(entry)) is None:
        locate(entry)


def _known() -> set[str]:
    return {suffix for name in SOURCES.names() for suffix in SOURCES.load(name).SUFFIXES} | set(COMPRESSED)


def _refuse_hub_settings(entry: DataEntry) -> None:
    for setting in ("subset", "folder"):
        if getattr(entry, setting) is not None:
            raise DataError(
                f"{entry.path}: {setting} is {getattr(entry, setting)!r}, which has no effect on local files.",
                "Remove it; only data sets of a hub (owner/name) have it.",
            )


def _local(path: Path, split: str | None) -> tuple[tuple[Path, ...], str | None]:
    """The files of a path, and the split that is still to be looked for in them."""
    try:
        _refuse_broken_link(path)
        need_file(path, "the data file")
    except UserError as error:
        raise DataError(error.problem, error.remedy) from error
    if not path.is_dir():
        if not path.is_file():  # /dev/zero has no end, and a pipe waits for a writer
            raise DataError(
                f"the data file {str(path)!r} is no regular file.", "A device or a pipe can't be read twice: copy it."
            )
        _type_of(path)
        return (path,), split
    if (path / "dataset_dict.json").is_file():
        return _saved(_saved_split(path, split)), None
    if (path / "state.json").is_file():
        return _saved(path), split
    return _children(path), split


def _refuse_broken_link(path: Path) -> None:
    """Raise `DataError` where a symbolic link leads to itself or to nothing."""
    if not path.is_symlink() or path.exists():
        return
    try:
        path.stat()
    except OSError as error:
        circle = error.errno == errno.ELOOP
        target = "which leads in a circle" if circle else f"to {path.readlink()}, which does not exist"
        raise DataError(f"the data file {str(path)!r} is a symbolic link {target}.", "Mend the link.") from error


def _saved_split(folder: Path, split: str | None) -> Path:
    """The folder of one of several splits that `save_to_disk` wrote."""
    splits = [str(name) for name in _json(folder / "dataset_dict.json").get("splits") or []]
    if split is None or split not in splits:
        asked = "" if split is None else f", and no {split!r}"
        raise DataError(
            f"{folder} holds the splits {', '.join(splits)}{asked}.",
            f"Name one of them: {{path: {folder}, split: ...}}.",
        )
    return folder / split


def _named_for_other_splits(path: Path, files: Iterable[Path]) -> tuple[str, ...]:
    """Of the files of a folder or a pattern those whose names speak of another split than training's."""
    base = Path(*itertools.takewhile(lambda part: not glob.has_magic(part), path.parts))
    return tuple(
        name
        for file in files
        if file != path and OTHER_SPLITS & set(re.split("[^a-z]+", (name := str(file.relative_to(base))).lower()))
    )


def _listed(names: Sequence[str]) -> str:
    """The first few names."""
    return ", ".join(names[:SHOWN_NAMES]) + (", ..." if len(names) > SHOWN_NAMES else "")


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
    known = _known() - set(COMPRESSED)
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
