"""Tokenized data kept on disk, each set under the hash of all that shaped it, so that it is made once.

An entry is written to a hidden sibling, flushed and renamed, under a lock of its own: of several processes that want the
same entry one makes it, and the others wait.
"""

from __future__ import annotations

import json
import os
import shutil
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from luthier.data.cache_entries import (
    FOLDER_VARIABLE,
    MANIFEST,
    REJECTED,
    DamagedEntryError,
    EntryWriter,
    Manifest,
    Request,
    cache_folder,
    check_sizes,
    hold,
    read_manifest,
)
from luthier.data.records import Origin, Rejected
from luthier.data.report import DataReport
from luthier.data.token_arrays import MemorySet, Numbering, StoredExamples, TokenBlock, TokenJoiner
from luthier.foundation.files import whole_folder

Say = Callable[[str], None]


@dataclass(slots=True)
class EncodedSets:
    """Tokenized splits, and what became of every row."""

    splits: dict[str, StoredExamples]
    report: DataReport
    rejected: list[Rejected]


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
    with suppress(OSError):  # when it was last used; a folder that is shared may be read-only
        os.utime(path / MANIFEST)
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
