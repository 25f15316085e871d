"""A private folder among the temporary files that does not outlive the process, however it ends."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "luthier-sandbox-"


class PrivateFolder:
    """A new folder that this user alone can open. Those of processes that were killed are removed first.

    It is locked while its process lives, which the system ends however the process does.
    """

    def __init__(self) -> None:
        place = Path(tempfile.gettempdir())
        self._lock: int | None = None
        remove_leftovers(place)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=place))
            try:
                self._lock = _lock(self.path)
            except OSError:  # nothing can be locked there: nor will another process take it for a leftover
                break
            # one may have, before it was locked
            if self._lock is not None and self.path.exists():
                break
            self.remove()

    def remove(self) -> None:
        """Remove it with what it holds; again is no fault."""
        shutil.rmtree(self.path, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def remove_leftovers(place: Path) -> None:
    """Remove the folders of this user there whose process is no more."""
    for folder in place.glob(f"{PREFIX}*"):
        try:
            own = folder.lstat().st_uid == os.getuid() and folder.is_dir() and not folder.is_symlink()
            lock = _lock(folder) if own else None
        except OSError:  # it is gone, or nothing can be locked there: then it can't be told from one in use
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """A descriptor that holds the lock of a folder; None where another process has it, or it is gone.

    Raises:
        OSError: nothing can be locked there.
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
