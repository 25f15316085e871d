"""The files that queries run on: bytes that nobody changes meanwhile.

SQLite opens a database without locks, journals and writes where it is told that the file is immutable. That is safe only if it
is, and complete only if no write-ahead log or rollback journal beside it holds pages that belong to it. So a database is copied
to a private folder first, with such files, which are merged into the copy there. A large one, or one for which there is no
room, is read where it is, and looked at before and after every query.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

# copying takes longer than it is worth beyond, and the disk may not have the room
COPIED_BYTES = 512 << 20
SQLITE_HEAD = b"SQLite format 3\0"


class DatabaseError(Exception):
    """A database that can't be read, in a sentence."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What is opened, and how its original looked."""

    path: Path
    original: Path
    stamp: tuple[int, int, int] | None

    def check(self) -> None:
        """Raises DatabaseError if the original is read in place and has changed."""
        if self.stamp is not None and stamp_of(self.original) != self.stamp:
            raise DatabaseError(f"{self.original} changed while it was read")


class Snapshots:
    """The databases of a run, each copied once, when it is first asked for. Safe to use from several threads."""

    def __init__(self, folder: Path, copied_bytes: int = COPIED_BYTES) -> None:
        self._folder = folder
        self._copied_bytes = copied_bytes
        self._made: dict[Path, Snapshot | DatabaseError] = {}
        self._lock = threading.Lock()

    def of(self, database: Path) -> Snapshot:
        """The snapshot of a database.

        Raises:
            DatabaseError: there is no such file, or it is no SQLite database.
        """
        original = database.absolute()
        with self._lock:
            found = self._made.get(original)
            if found is None:
                try:
                    found = self._make(original, len(self._made))
                except DatabaseError as error:
                    found = error
                self._made[original] = found
        if isinstance(found, DatabaseError):
            raise found
        return found

    def _make(self, original: Path, number: int) -> Snapshot:
        try:
            with original.open("rb") as stream:
                head = stream.read(len(SQLITE_HEAD))
        except OSError as error:
            raise DatabaseError(f"the database {original} can't be read: {error.strerror}") from error
        if head != SQLITE_HEAD:
            raise DatabaseError(f"{original} is no SQLite database: it begins with {head[:16]!r}")
        unmerged = [path for path in companions(original) if path.exists() and path.stat().st_size > 0]
        if original.stat().st_size > self._copied_bytes and not unmerged:
            return Snapshot(original, original, stamp_of(original))
        copy = self._folder / f"{number}.sqlite"
        try:
            shutil.copyfile(original, copy)
            for path, beside in zip(companions(original), companions(copy), strict=True):
                if path in unmerged:
                    shutil.copyfile(path, beside)
            if unmerged:
                merge(copy)
        except (OSError, sqlite3.Error) as error:
            if unmerged:
                raise DatabaseError(f"{original} can't be copied to {self._folder}: {error}") from error
            copy.unlink(missing_ok=True)  # the disk of temporary files is full
            return Snapshot(original, original, stamp_of(original))
        copy.chmod(0o400)
        return Snapshot(copy, original, None)


def companions(database: Path) -> tuple[Path, Path]:
    """The write-ahead log and the rollback journal that SQLite keeps beside a database."""
    return database.with_name(database.name + "-wal"), database.with_name(database.name + "-journal")


def merge(database: Path) -> None:
    """Bring what stands beside a private copy into it: SQLite recovers it as after a crash."""
    connection = sqlite3.connect(database, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    finally:
        connection.close()


def stamp_of(path: Path) -> tuple[int, int, int]:
    """Size, time of the last change and inode."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns, status.st_ino
