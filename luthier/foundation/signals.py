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

    Inside, it is a KeyboardInterrupt, which no `except Exception` takes for a failure of what it tries.

    Raises:
        Interrupted: it came.
    """
    came = False

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal came
        came = True
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # elsewhere Python can't set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except KeyboardInterrupt:
        if came:
            raise Interrupted(problem, remedy, signal.SIGTERM) from None
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
