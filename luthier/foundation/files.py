"""Files that appear whole or not at all, and what is known of the disk they stand on."""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import json
import math
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luthier.foundation.errors import UserError

HASH_BLOCK_BYTES = 4 * 1024 * 1024


def home() -> Path:
    """luthier's cache: `LUTHIER_HOME`, or `~/.cache/luthier`."""
    return Path(os.environ.get("LUTHIER_HOME") or Path.home() / ".cache" / "luthier").expanduser()


def fsync_path(path: Path) -> None:
    """Flush a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Replace a text file (UTF-8) in one step: readers see the old content or the new, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(4)}"
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    """Replace a JSON file in one step; non-finite numbers are refused, they are no JSON."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def finite(value: Any) -> Any:
    """Plain values with None for each number that is not finite, which JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return type(value)(map(finite, value)) if isinstance(value, (list, tuple)) else value


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that luthier wrote.

    Raises:
        UserError: it is missing, broken, or no object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} can't be read: {error}.", "It is written by luthier: restore it, or start anew."
        ) from error
    if not isinstance(value, dict):
        raise UserError(f"{path} holds no JSON object.", "It is written by luthier: restore it, or start anew.")
    return value


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a hidden sibling to fill; on success it is flushed and renamed to `path`, on failure it is removed.

    A folder left behind by a killed process is removed by the next writer of the same name; one that another living
    process is filling is left alone. Where both finish, the first wins.

    Raises:
        OSError: at the end, `path` is there already and is no empty folder.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(path)
    building, lock = _new_locked_folder(path)
    try:
        yield building
        for folder, _, names in os.walk(building):
            for name in names:
                if not Path(folder, name).is_symlink():
                    fsync_path(Path(folder, name))
            fsync_path(Path(folder))
        os.rename(building, path)
        fsync_path(path.parent)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def _new_locked_folder(path: Path) -> tuple[Path, int]:
    """A hidden sibling of `path` and a descriptor that holds its lock; the system drops the lock when we die."""
    while True:
        building = path.parent / f".{path.name}.building-{secrets.token_hex(4)}"
        building.mkdir()
        lock = _lock_or_open(building)
        # another process may have taken the folder for a leftover before it was locked
        if lock is not None and building.exists():
            return building, lock
        if lock is not None:
            os.close(lock)


def _lock_or_open(folder: Path) -> int | None:
    """As `lock_folder`; where nothing can be locked, a descriptor without: some network disks lock no folders, a leftover
    there can't be told from work going on, and is taken for one."""
    try:
        return lock_folder(folder)
    except OSError:
        return os.open(folder, os.O_RDONLY)


def lock_folder(folder: Path) -> int | None:
    """A descriptor holding an exclusive lock on a folder, or None: another process holds it, or the folder is gone.

    Raises:
        OSError: nothing can be locked there, or it is a link or no folder.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_leftovers(path: Path) -> None:
    """Remove hidden siblings that an interrupted `whole_folder(path)` left."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.building-*"):
        lock = _lock_or_open(leftover)
        if lock is not None:
            shutil.rmtree(leftover, ignore_errors=True)
            os.close(lock)


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes, read in blocks."""
    return digest_of(path, "sha256")


def digest_of(path: Path, algorithm: str) -> str:
    """The same by an algorithm that hashlib knows by this name."""
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as stream:
        while block := stream.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def free_bytes(path: Path) -> int:
    """Free bytes of the disk that holds `path`, or will hold it."""
    existing = path.absolute()
    while not existing.exists():
        existing = existing.parent
    return shutil.disk_usage(existing).free


def human_bytes(count: float) -> str:
    """`1536` -> `1.5 KiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


# the system's texts, and their names in Rust, from which safetensors has its errors
FULL_MARKS = (
    "No space left on device", "StorageFull", "File too large", "FileTooLarge", "Disk quota exceeded", "QuotaExceeded"
)  # fmt: skip


def is_disk_full(error: BaseException) -> bool:
    """Whether an error, or one that caused it, says that the disk or the quota is used up.

    safetensors raises its own error class with the system's text, so the text is looked at too.
    """
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        if any(mark in str(current) for mark in FULL_MARKS):
            return True
        current = current.__cause__ or current.__context__
    return False


def held_beside(path: Path, most: int = 8) -> str:
    """A sentence with what the folder holds that `path` is missing from; hidden names are not told."""
    names = sorted(p.name for p in path.parent.iterdir() if not p.name.startswith(".")) if path.parent.is_dir() else []
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (
        f"{path.parent} holds: {', '.join(names[:most])}{more}." if names else f"{path.parent} is no folder or empty."
    )


def need_file(path: Path, what: str) -> Path:
    """`path` if it is a readable, non-empty file (or a folder, which the caller may allow or refuse).

    Raises:
        UserError: it is missing, empty, or may not be read.
    """
    if not path.exists():
        raise UserError(
            f"{what} {str(path)!r} does not exist.", f"Paths are relative to where luthier runs; {held_beside(path)}"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise UserError(f"{what} {str(path)!r} is empty (0 bytes).", "Was the file written completely?")
    if not os.access(path, os.R_OK):
        raise UserError(f"{what} {str(path)!r} may not be read by this user.", "Its permissions must allow reading.")
    return path


def need_place(path: Path, what: str) -> Path:
    """`path` if a file can be written there, be it in a folder that is still to be made.

    Raises:
        UserError: it is a folder, or the one it would stand in is none or may not be written to.
    """
    if path.is_dir():
        raise UserError(f"{what} {str(path)!r} is a folder.", "Name a file in it.")
    if problem := unwritable(path.parent):
        raise UserError(f"{what} {str(path)!r} can't be written: {problem}.", "Name another place.")
    return path


def need_apart(path: Path, what: str, read: Iterable[str | Path]) -> None:
    """Refuse to write a file that is read: nobody could read it again.

    Raises:
        UserError: it is one of those.
    """
    for other in read:
        there = Path(other).expanduser()
        if path.exists() and there.exists() and path.samefile(there):
            raise UserError(f"{what} {str(path)!r} is a file that is read here.", "Name another file.")


def need_new(path: Path, what: str, *, overwrite: bool) -> None:
    """See `need_place`; a file that is there is replaced only with `overwrite`.

    Raises:
        UserError: it can't be written, or is there.
    """
    need_place(path, what)
    if path.exists() and not overwrite:
        raise UserError(f"{path} is there already.", "Name another file, or replace it with --overwrite.")


def unwritable(folder: Path) -> str:
    """Why nothing can be written to a folder, which may be still to be made; empty where it can be."""
    existing = folder.absolute()
    while not existing.exists():
        existing = existing.parent
    if not existing.is_dir():
        return f"{existing} is no folder"
    return "" if os.access(existing, os.W_OK | os.X_OK) else f"{existing} can't be written to"
