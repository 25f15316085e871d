"""The files that queries run on: bytes that nobody changes meanwhile.

SQLite opens a database without locks, journals and writes where it is told that the file is immutable. That is safe only if it
is, and complete only if no write-ahead log or rollback journal beside it holds pages that belong to it. So a database is copied
to a private folder first, with such files, which are merged into the copy there. A large one, or one for which there is no
room, is read where it is, and looked at before and after every query. Copies that no query reads make room for new ones.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

# copying takes longer than it is worth beyond, and the disk may not have the room
COPIED_BYTES = 512 << 20
# of all copies at a time; temporary files may lie in memory
TOTAL_BYTES = 2 << 30
ATTEMPTS = 3  # to copy what is being written
SQLITE_HEAD = b"SQLite format 3\0"
Stamp = tuple[int, int, int]


class DatabaseError(Exception):
    """A database that can't be read, in a sentence."""


@dataclass(slots=True)
class Snapshot:
    """What is opened, and how its original looked.

    Args:
        path: the copy, or the original, which is read in place; None where the copy made room for others.
        stamps: of the original and what stood beside it.
        size: of a copy in bytes; 0 of what is read in place.
        readers: how many read it now.
    """

    path: Path | None
    original: Path
    stamps: tuple[Stamp, ...]
    size: int = 0
    readers: int = 0

    def check(self) -> None:
        """Raises DatabaseError if the original is read in place and has changed."""
        if self.path == self.original and stamps_of(self.original) != self.stamps:
            raise DatabaseError(f"{self.original} changed while it was read")


class Snapshots:
    """The databases of a run, each copied when it is first asked for. Safe to use from several threads.

    Args:
        folder: a private one, for the copies.
        copied_bytes: the largest database that is copied though it could be read in place.
        total_bytes: of all copies together.
        follow: copy anew what changed and nobody reads; else it stays as it was first seen, as in an evaluation it must.
    """

    def __init__(
        self,
        folder: Path,
        copied_bytes: int = COPIED_BYTES,
        total_bytes: int = TOTAL_BYTES,
        *,
        follow: bool = False,
    ) -> None:
        self._folder, self._follow = folder, follow
        self._copied_bytes, self._total_bytes = copied_bytes, total_bytes
        self._made: dict[Path, Snapshot | DatabaseError] = {}  # the one that was asked for last stands last
        self._count = 0
        self._changed = threading.Condition()

    @contextmanager
    def held(self, database: Path) -> Iterator[Path]:
        """The file to read for a database, which stays as it is meanwhile. A thread holds one at a time.

        Raises:
            DatabaseError: there is no such file, it is no SQLite database, or it changes.
        """
        original = database.absolute()
        with self._changed:
            while (snapshot := self._of(original)) is None:
                self._changed.wait()
            snapshot.readers += 1
        assert snapshot.path is not None
        try:
            snapshot.check()
            yield snapshot.path
            snapshot.check()
        finally:
            with self._changed:
                snapshot.readers -= 1
                self._changed.notify_all()

    def _of(self, original: Path) -> Snapshot | None:
        """The snapshot of a database; None where others have to be left first, so that there is room."""
        found: Snapshot | DatabaseError | None = self._made.get(original)
        if self._follow and found is not None and self._is_outdated(found):
            self._made.pop(original)
            found = None
        if found is None or (isinstance(found, Snapshot) and found.path is None):
            try:
                found = self._make(original, None if found is None else found.stamps)
            except DatabaseError as error:
                found = error
            if found is None:
                return None
        self._made.pop(original, None)
        self._made[original] = found
        if isinstance(found, DatabaseError):
            raise found
        return found

    def _make(self, original: Path, before: tuple[Stamp, ...] | None) -> Snapshot | None:
        try:
            with original.open("rb") as stream:
                head = stream.read(len(SQLITE_HEAD))
        except OSError as error:
            raise DatabaseError(f"the database {original} can't be read: {error.strerror}") from error
        if head != SQLITE_HEAD:
            raise DatabaseError(f"{original} is no SQLite database: it begins with {head[:16]!r}")
        stamps = stamps_of(original)
        if before is not None and stamps != before:
            raise DatabaseError(f"{original} changed between two queries")
        size = sum(stamp[0] for stamp in stamps)
        must = bool(unmerged(original))  # else it could be read in place
        if must and size > self._total_bytes:
            raise DatabaseError(
                f"{original} has a write-ahead log or a journal and, with {size:,} bytes, is too large to be copied: "
                "let SQLite merge it first, with PRAGMA wal_checkpoint(TRUNCATE)"
            )
        if not must and (size > self._copied_bytes or not self._make_room(size)):
            return Snapshot(original, original, stamps)
        if must and not self._make_room(size):
            return None
        self._count += 1
        copy = self._folder / f"{self._count}.sqlite"
        try:
            return Snapshot(copy, original, copied(original, copy), size)
        except (OSError, sqlite3.Error, DatabaseError) as error:
            for path in (copy, *companions(copy)):
                path.unlink(missing_ok=True)
            if isinstance(error, DatabaseError):
                raise
            if must:
                raise DatabaseError(f"{original} can't be copied to {self._folder}: {error}") from error
            return Snapshot(original, original, stamps)  # the disk of temporary files is full

    def _is_outdated(self, found: Snapshot | DatabaseError) -> bool:
        """Whether it is no longer what the original is; then a copy is removed."""
        if isinstance(found, DatabaseError):
            return True
        if found.readers or stamps_of(found.original) == found.stamps:
            return False
        if found.path not in (None, found.original):
            assert found.path is not None
            found.path.unlink(missing_ok=True)
        return True

    def _make_room(self, size: int) -> bool:
        """Remove copies that nobody reads, the longest unused first; whether there is room for another then."""
        copies = [found for found in self._made.values() if isinstance(found, Snapshot) and found.size and found.path]
        taken = sum(copy.size for copy in copies)
        for copy in copies:
            if taken + size <= self._total_bytes:
                break
            if not copy.readers and copy.path is not None:
                copy.path.unlink(missing_ok=True)
                copy.path = None
                taken -= copy.size
        return taken + size <= self._total_bytes


def copied(original: Path, copy: Path) -> tuple[Stamp, ...]:
    """Copy a database with what stands beside it, merged; the stamps of what was copied.

    Raises:
        DatabaseError: it is being written. OSError, sqlite3.Error: it can't be copied.
    """
    for _ in range(ATTEMPTS):
        stamps = stamps_of(original)
        shutil.copyfile(original, copy)
        beside = unmerged(original)
        for path, own in zip(companions(original), companions(copy), strict=True):
            own.unlink(missing_ok=True)
            if path in beside:
                shutil.copyfile(path, own)
        if stamps_of(original) == stamps:
            break
    else:
        raise DatabaseError(f"{original} is being written: it changed while it was copied, {ATTEMPTS} times")
    if beside:
        merge(copy)
    copy.chmod(0o400)
    return stamps


def unmerged(database: Path) -> list[Path]:
    """The files beside a database that hold pages of it."""
    return list(_statuses(database))


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


def stamps_of(database: Path) -> tuple[Stamp, ...]:
    """Size, time of the last change and inode of a database and of the files beside it that hold pages of it.

    Raises:
        OSError: there is no such database.
    """
    found = [database.stat(), *_statuses(database).values()]
    return tuple((status.st_size, status.st_mtime_ns, status.st_ino) for status in found)


def _statuses(database: Path) -> dict[Path, os.stat_result]:
    """Of the files beside a database that hold pages of it. Each is looked at once: a writer may remove them meanwhile."""
    found: dict[Path, os.stat_result] = {}
    for path in companions(database):
        with suppress(FileNotFoundError):
            found[path] = path.stat()
    return {path: status for path, status in found.items() if status.st_size > 0}
