"""A private folder among the temporary files that does not outlive the process, however it ends."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from luthier.foundation.files import lock_folder

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
                self._lock = lock_folder(self.path)
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
            lock = lock_folder(folder) if own else None
        except OSError:  # it is gone, or nothing can be locked there: then it can't be told from one in use
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)
