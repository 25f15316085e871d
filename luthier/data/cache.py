"""Tokenized data kept on disk, each set under the hash of all that shaped it, so that it is made once.

An entry is a folder: for every split the five files of `token_arrays`, `rejected.jsonl`, and `manifest.json`, which is
what the entry says of itself. It is written to a hidden sibling, flushed and renamed, under a lock of its own: of several
processes that want the same entry one makes it, and the others wait. Whoever reads an entry holds a shared lock on its
manifest as long as it is used, so that nobody removes it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from filelock import FileLock, Timeout
from pydantic import BaseModel, ValidationError

from luthier.data.records import Origin, Rejected
from luthier.data.report import DataReport
from luthier.data.token_arrays import (
    MemorySet,
    Numbering,
    StoredExamples,
    TokenArrays,
    TokenBlock,
    TokenJoiner,
)
from luthier.foundation.files import home, sha256_of, whole_folder

# raise it when the files of an entry change their form
FORMAT_VERSION = 1
MANIFEST = "manifest.json"
REJECTED = "rejected.jsonl"
FOLDER_VARIABLE = "LUTHIER_DATA_CACHE"

Say = Callable[[str], None]


def cache_folder() -> Path:
    """Where entries stand: `LUTHIER_DATA_CACHE`, or `data` in luthier's cache."""
    return Path(os.environ.get(FOLDER_VARIABLE) or home() / "data").expanduser()


@dataclass(slots=True)
class EncodedSets:
    """Tokenized splits, and what became of every row."""

    splits: dict[str, StoredExamples]
    report: DataReport
    rejected: list[Rejected]


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


class Sink(Protocol):
    """Takes the blocks of one split, in order."""

    def add(self, block: TokenBlock) -> None: ...


# makes the data: opens a sink for every split and fills it; gives the report and the rows left out
Build = Callable[[Callable[[str], Sink]], tuple[DataReport, list[Rejected]]]


def in_memory(request: Request, dtype: str, build: Build) -> EncodedSets:
    """The data made without any cache."""
    files = Numbering(request.paths)
    splits: dict[str, MemorySet] = {}

    def open_split(split: str) -> MemorySet:
        return splits.setdefault(split, MemorySet(TokenJoiner(files), dtype))

    report, rejected = build(open_split)
    return EncodedSets({split: found.finish() for split, found in splits.items()}, report, rejected)


def from_cache(request: Request, dtype: str, build: Build, say: Say) -> EncodedSets:
    """The data from its entry, which is made where there is none; without any cache where that can't be written.

    Args:
        dtype: of token ids.
        say: told where the data come from an entry, where one is damaged, and why none can be written.

    Raises:
        DataError: what `build` raises; then no entry is left behind.
    """
    folder = cache_folder()
    try:
        found = _open_entry(folder, request, say)
        if found is None:
            with _making(folder, request.key, say):
                # while this process waited, another may have made it
                found = _open_entry(folder, request, say) or _make_entry(folder, request, dtype, build, say)
        return found
    except (OSError, NotImplementedError) as error:
        say(
            f"data: prepared without a cache, since {folder} can't be written ({error}); {FOLDER_VARIABLE} names another"
        )
        return in_memory(request, dtype, build)


def _make_entry(folder: Path, request: Request, dtype: str, build: Build, say: Say) -> EncodedSets:
    path = folder / request.key
    shutil.rmtree(path, ignore_errors=True)  # a damaged one
    with whole_folder(path) as building, EntryWriter(building, request, dtype) as writer:
        report, rejected = build(writer.open)
        writer.finish(report, rejected)
    found = _open_entry(folder, request, lambda text: None)
    if found is None:
        raise OSError(f"the entry {request.key} is gone")
    return found


@contextmanager
def _making(folder: Path, key: str, say: Say) -> Iterator[None]:
    """Hold the lock of making an entry."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f".{key}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        say("data: another process prepares the same data; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _open_entry(folder: Path, request: Request, say: Say) -> EncodedSets | None:
    """An entry's data, under the names that its files have now; None where there is no whole one."""
    path = folder / request.key
    descriptor = hold(path)
    if descriptor is None:
        return None
    try:
        manifest = read_manifest(path)
        check_sizes(path, manifest)
        sets = _read_entry(path, manifest, request)
        for examples in sets.splits.values():
            # the lock lasts until the last copy of the descriptor is closed
            weakref.finalize(examples, os.close, os.dup(descriptor))
    except (DamagedEntryError, ValueError) as error:
        say(f"data: the cache's entry {path} is damaged ({error}): it is made anew")
        return None
    finally:
        os.close(descriptor)
    os.utime(path / MANIFEST)  # when it was last used
    say(f"data: from the cache, prepared {manifest.created} ({path})")
    return sets


def _read_entry(path: Path, manifest: Manifest, request: Request) -> EncodedSets:
    files = [*request.paths, *manifest.other_files]
    splits = {
        split: StoredExamples.opened(path, split, manifest.dtype, files, names)
        for split, names in manifest.names.items()
    }
    for source, name in zip(manifest.report.sources, request.sources, strict=True):
        source.path = name
    rejected = []
    for line in (path / REJECTED).read_text(encoding="utf-8").splitlines():
        (file, row), reason, values = json.loads(line)
        rejected.append(Rejected(Origin(files[file], row), reason, values))
    return EncodedSets(splits, manifest.report, rejected)


def hold(path: Path) -> int | None:
    """A descriptor that keeps an entry from being removed; None where there is none, or it is being removed."""
    try:
        descriptor = os.open(path / MANIFEST, os.O_RDONLY)
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not _lock(descriptor, fcntl.LOCK_SH) or os.fstat(descriptor).st_nlink == 0:
        os.close(descriptor)
        return None
    return descriptor


def _lock(descriptor: int, kind: int) -> bool:
    """Lock a file unless another process's lock forbids it; some network disks know no locks, and forbid nothing."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
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
    try:
        descriptor = os.open(path / MANIFEST, os.O_RDONLY)
    except FileNotFoundError:
        descriptor = None  # a folder that never was an entry, or is none any more
    try:
        if descriptor is not None and not _lock(descriptor, fcntl.LOCK_EX):
            return False
        gone = path.parent / f".{path.name}.removed-{secrets.token_hex(4)}"
        os.rename(path, gone)
        shutil.rmtree(gone)
        return True
    finally:
        if descriptor is not None:
            os.close(descriptor)


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
