"""`luthier data cache`: which tokenized data are kept, whether they are whole, and removing them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from luthier.data.cache_entries import (
    MANIFEST,
    DamagedEntryError,
    cache_folder,
    check_hashes,
    check_sizes,
    entry_folders,
    in_use,
    read_manifest,
    remove,
    sweep,
)
from luthier.foundation.errors import UserError
from luthier.foundation.files import human_bytes

SHORT_KEY = 10
DAY_SECONDS = 86_400


@dataclass(frozen=True, slots=True)
class CachedData:
    """One entry.

    Args:
        key: its folder's name; prepared, used: when it was made and last read, ISO 8601, "" where that can't be read.
        bytes: on disk. rows, tokens: of each split. paths: the data files, as they were called.
        settings: what shows which preparation it is. in_use: whether a process reads it now.
        fault: what is wrong with it, "" for nothing.
    """

    key: str
    prepared: str
    used: str
    bytes: int
    rows: dict[str, int]
    tokens: dict[str, int]
    paths: list[str]
    settings: dict[str, Any]
    in_use: bool
    fault: str

    def lines(self) -> list[str]:
        """For the terminal."""
        state = f"  DAMAGED: {self.fault}" if self.fault else "  in use" if self.in_use else ""
        used = self.used[:16].replace("T", " ")
        lines = [f"{self.key[:SHORT_KEY]}  {human_bytes(self.bytes)}, last used {used}{state}"]
        lines += [f"    {path}" for path in self.paths]
        lines += [
            f"    {split}: {count:,} examples, {self.tokens[split]:,} tokens" for split, count in self.rows.items()
        ]
        settings = [f"{name}: {value}" for name, value in self.settings.items() if value is not None]
        return [*lines, f"    {', '.join(settings)}"] if settings else lines


@dataclass(frozen=True, slots=True)
class CacheList:
    """All entries of the cache, and where it is."""

    folder: str
    entries: tuple[CachedData, ...]
    verified: bool

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """For the terminal."""
        lines = [line for entry in self.entries for line in entry.lines()]
        total = human_bytes(sum(entry.bytes for entry in self.entries))
        count = len(self.entries)
        lines.append(f"{count:,} {'entry' if count == 1 else 'entries'}, {total}, in {self.folder}")
        if self.verified and not any(entry.fault for entry in self.entries):
            lines.append("Every file holds what was written.")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class Cleared:
    """What was removed.

    Args:
        removed, kept: keys; kept are entries that were to go and are in use.
        bytes: that are free again.
    """

    removed: tuple[str, ...]
    kept: tuple[str, ...]
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def text(self) -> str:
        """For the terminal."""
        lines = [f"{len(self.removed):,} removed, {human_bytes(self.bytes)} are free."]
        lines += [f"{key[:SHORT_KEY]} is in use, and stays." for key in self.kept]
        return "\n".join(lines)


def list_cache(*, verify: bool = False) -> CacheList:
    """All entries of the cache, the one last used first.

    Args:
        verify: compare every file's hash too, not only its size.
    """
    folder = cache_folder()
    entries = [_describe(path, verify=verify) for path in entry_folders(folder)]
    return CacheList(str(folder), tuple(sorted(entries, key=lambda entry: entry.used, reverse=True)), verify)


def clear_cache(key: str | None = None, *, older_than_days: float | None = None, everything: bool = False) -> Cleared:
    """Remove entries that nobody uses: one, those not used for some days, or all. Leftovers of killed processes go too.

    Args:
        key: the beginning of an entry's key, as long as it takes to tell it from others.

    Raises:
        UserError: not exactly one of the three is given; no entry, or several, are meant by the key.
    """
    if sum((key is not None, older_than_days is not None, everything)) != 1:
        raise UserError(
            "data cache clear removes one entry (KEY), those not used for some days (--older-than DAYS), or all (--all).",
            "Give exactly one of them; `luthier data cache list` shows the keys.",
        )
    folder = cache_folder()
    sweep(folder)
    paths = entry_folders(folder)
    if key is not None:
        paths = [_meant(key, paths)]
    elif older_than_days is not None:
        paths = [path for path in paths if time.time() - _last_used(path) > older_than_days * DAY_SECONDS]
    sizes = {path.name: _size(path) for path in paths}
    gone = {path.name: remove(path) for path in paths}
    removed = tuple(name for name, done in gone.items() if done)
    kept = tuple(name for name, done in gone.items() if not done)
    return Cleared(removed, kept, sum(sizes[name] for name in removed))


def _meant(key: str, paths: Sequence[Path]) -> Path:
    found = [path for path in paths if key and path.name.startswith(key)]
    if len(found) != 1:
        keys = ", ".join(path.name[:SHORT_KEY] for path in found or paths) or "none"
        raise UserError(
            f"the cache has {len(found) or 'no'} {'entries' if found else 'entry'} whose key begins with {key!r}.",
            f"{'Those are' if found else 'Its keys'}: {keys}.",
        )
    return found[0]


def _describe(path: Path, *, verify: bool) -> CachedData:
    """What an entry says of itself, and whether it is true."""
    used = _time(_last_used(path))
    try:
        manifest = read_manifest(path)
    except DamagedEntryError as error:
        return CachedData(path.name, "", used, _size(path), {}, {}, [], {}, False, str(error))
    fault = ""
    try:
        (check_hashes if verify else check_sizes)(path, manifest)
    except DamagedEntryError as error:
        fault = str(error)
    splits = manifest.report.splits
    return CachedData(
        key=path.name,
        prepared=manifest.created,
        used=used,
        bytes=manifest.size,
        rows={name: split.examples for name, split in splits.items()},
        tokens={name: split.tokens for name, split in splits.items()},
        paths=list(dict.fromkeys(manifest.paths)),
        settings=manifest.settings,
        in_use=in_use(path),
        fault=fault,
    )


def _last_used(path: Path) -> float:
    """When an entry was last read, or its folder made; 0 for one that somebody else has just removed."""
    for place in (path / MANIFEST, path):
        with suppress(FileNotFoundError):
            return place.stat().st_mtime
    return 0.0


def _size(path: Path) -> int:
    """Bytes of an entry's files."""
    with suppress(FileNotFoundError):
        return sum(file.stat().st_size for file in path.iterdir())
    return 0


def _time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).astimezone().isoformat(timespec="seconds")
