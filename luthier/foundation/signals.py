"""What SIGTERM does to work that saves nothing on its own: it ends as at a Ctrl-C, so that what was opened is closed."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from luthier.foundation.errors import Interrupted


@contextmanager
def ends_at_sigterm(problem: str, remedy: str = "") -> Iterator[None]:
    """While the block runs, SIGTERM ends it with these words, exit status 143.

    Raises:
        Interrupted: it came.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise Interrupted(problem, remedy, number)

    if threading.current_thread() is not threading.main_thread():  # elsewhere Python can't set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
