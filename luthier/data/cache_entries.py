"""Entries of the cache of tokenized data, as files.

An entry is a folder: for every split the five files of `token_arrays`, `rejected.jsonl`, and `manifest.json`, which is
what the entry says of itself. Whoever reads an entry holds a shared lock on its manifest as long as it is used, so that
nobody removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from luthier.data.records import Rejected
from luthier.data.report import DataReport
from luthier.data.token_arrays import Numbering, TokenArrays, TokenBlock, TokenJoiner
from luthier.foundation.files import home, remove_leftovers, sha256_of

# raise it when the files of an entry change their form
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
REMOVED = ".removed-"
FOLDER_VARIABLE = "LUTHIER_DATA_CACHE"


def cache_folder() -> Path:
    """Where entries stand: `LUTHIER_DATA_CACHE`, or `data` in luthier's cache."""
    return Path(os.environ.get(FOLDER_VARIABLE) or home() / "data").expanduser()


class FileStamp(BaseModel):
    """What a file of an entry must be."""

    bytes: int
    sha256: str


class Manifest(BaseModel):
    """What an entry says of itself.

    Args:
        created: when it was made, ISO 8601 with time zone.
        paths: the files its rows came from, as they were called then.
        settings: of the config, what shows which preparation this is.
        dtype: of token ids.
        other_files: names beyond the located files' that rows say they come from.
        names: of each split's extras.
        files: every file but the manifest itself.
    """

    format_version: int
    key: str
    created: str
    paths: list[str]
    settings: dict[str, Any]
    dtype: str
    report: DataReport
    other_files: list[str]
    names: dict[str, list[str]]
    files: dict[str, FileStamp]

    @property
    def size(self) -> int:
        """Bytes of its files."""
        return sum(stamp.bytes for stamp in self.files.values())


class DamagedEntryError(ValueError):
    """An entry that is not what its manifest says."""


@dataclass(frozen=True, slots=True)
class Request:
    """What is looked for.

    Args:
        key: see `fingerprints.cache_key`.
        paths: what the rows' files are called now; an entry's rows take these names.
        sources: what the report calls the entries of the config, in its order.
        settings: kept with a new entry, for people.
    """

    key: str
    paths: Sequence[str]
    sources: Sequence[str]
    settings: dict[str, Any]


class EntryWriter:
    """Writes the splits of one entry into a folder. A context manager, which closes its files."""

    def __init__(self, folder: Path, request: Request, dtype: str) -> None:
        self._folder = folder
        self._request = request
        self._dtype = dtype
        self._files = Numbering(request.paths)
        self._splits: dict[str, _SplitFiles] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing.close()

    def _new(self, name: str) -> _StampedFile:
        return self._closing.enter_context(closing(_StampedFile(self._folder / name)))

    def open(self, split: str) -> _SplitFiles:
        """A place for the blocks of a split."""
        files = {array: self._new(f"{split}.{array}") for array in TokenArrays._fields}
        self._splits[split] = _SplitFiles(TokenJoiner(self._files), files)
        return self._splits[split]

    def finish(self, report: DataReport, rejected: Iterable[Rejected]) -> None:
        """Write what is known of the data, the manifest last."""
        left_out = self._new(REJECTED)
        for item in rejected:
            place = [self._files.number(item.origin.path), item.origin.row]
            left_out.write(json.dumps([place, item.reason, dict(item.values)], default=str).encode() + b"\n")
        written = [left_out, *(file for split in self._splits.values() for file in split.files.values())]
        manifest = Manifest(
            format_version=FORMAT_VERSION,
            key=self._request.key,
            created=datetime.now(UTC).astimezone().isoformat(timespec="seconds"),
            paths=list(self._request.paths),
            settings=self._request.settings,
            dtype=self._dtype,
            report=report,
            other_files=self._files.known[len(self._request.paths) :],
            names={split: opened.joiner.names.known for split, opened in self._splits.items()},
            files={file.path.name: file.stamp() for file in written},
        )
        (self._folder / MANIFEST).write_text(manifest.model_dump_json(indent=1), encoding="utf-8")


class _StampedFile:
    """A new file whose hash is taken while it is written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stream = path.open("xb")
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> None:
        self._stream.write(data)
        self._digest.update(data)

    def stamp(self) -> FileStamp:
        return FileStamp(bytes=self._stream.tell(), sha256=self._digest.hexdigest())

    def close(self) -> None:
        self._stream.close()


@dataclass(frozen=True, slots=True)
class _SplitFiles:
    """The files of one split, one for each array."""

    joiner: TokenJoiner
    files: dict[str, _StampedFile]

    def add(self, block: TokenBlock) -> None:
        for array, values in self.joiner.place(block)._asdict().items():
            self.files[array].write(values.tobytes())


def hold(path: Path) -> int | None:
    """A descriptor that keeps an entry from being removed until it is closed; None where there is none."""
    descriptor = _opened(path)
    if descriptor is None:
        return None
    _lock(descriptor, fcntl.LOCK_SH)  # waits while somebody removes it
    if os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return descriptor


def in_use(path: Path) -> bool:
    """Whether somebody holds an entry."""
    descriptor = _opened(path)
    if descriptor is None:
        return False
    try:
        return not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)


def _opened(path: Path) -> int | None:
    try:
        return os.open(path / MANIFEST, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _lock(descriptor: int, kind: int) -> bool:
    """Lock a file unless another's lock forbids it; some network disks know no locks, and forbid nothing."""
    try:
        fcntl.flock(descriptor, kind)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


def read_manifest(path: Path) -> Manifest:
    """What an entry says of itself.

    Raises:
        DamagedEntryError: nothing that can be read.
    """
    try:
        manifest = Manifest.model_validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise DamagedEntryError(f"{MANIFEST} can't be read") from error
    if manifest.format_version != FORMAT_VERSION:
        raise DamagedEntryError(f"{MANIFEST} is of the form {manifest.format_version}")
    return manifest


def check_sizes(path: Path, manifest: Manifest) -> None:
    """Raise `DamagedEntryError` where a file of an entry is missing or of another size."""
    for name, stamp in manifest.files.items():
        try:
            size = (path / name).stat().st_size
        except OSError as error:
            raise DamagedEntryError(f"{name} is missing") from error
        if size != stamp.bytes:
            raise DamagedEntryError(f"{name} has {size:,} bytes, not {stamp.bytes:,}")


def check_hashes(path: Path, manifest: Manifest) -> None:
    """Raise `DamagedEntryError` where a file of an entry holds something else than was written."""
    check_sizes(path, manifest)
    for name, stamp in manifest.files.items():
        if sha256_of(path / name) != stamp.sha256:
            raise DamagedEntryError(f"{name} does not hold what was written")


def remove(path: Path) -> bool:
    """Remove an entry unless somebody uses it; whether it is gone."""
    descriptor = _opened(path)  # None: a folder without a manifest, which nobody can use
    try:
        if descriptor is not None and not _lock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB):
            return False
        gone = path.parent / f".{path.name}{REMOVED}{secrets.token_hex(4)}"
        with suppress(FileNotFoundError):  # somebody else was faster
            os.rename(path, gone)
            shutil.rmtree(gone)
        return True
    finally:
        if descriptor is not None:
            os.close(descriptor)


def entry_folders(folder: Path) -> list[Path]:
    """The entries of a cache, by name."""
    return sorted(path for path in folder.glob("*") if path.is_dir() and not path.name.startswith("."))


def sweep(folder: Path) -> None:
    """Remove what killed processes left: entries half written or half removed. What a living one works on stays."""
    for path in folder.glob(f".*{REMOVED}*"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(".*.building-*"):
        remove_leftovers(folder / path.name[1:].partition(".")[0])
