"""Ctrl-C and SIGTERM: the current step is finished and saved, then the run ends. A second Ctrl-C ends it at once."""

from __future__ import annotations

import signal
import threading
from contextlib import AbstractContextManager
from types import FrameType, TracebackType

from luthier.foundation.signals import ends_at_sigterm


def ended_early() -> AbstractContextManager[None]:
    """SIGTERM before the first step, while weights are read: nothing is to be saved, so the run ends at once, noted.

    Raises:
        Interrupted: inside, it came.
    """
    return ends_at_sigterm("stopped before the first step, as asked: nothing new was learnt.")


class StopRequest:
    """Listens while a run goes on. `signal_number` is set once a stop was asked for."""

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python can't set handlers
            for number in self.SIGNALS:
                self._before[number] = signal.signal(number, self._asked)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _asked(self, number: int, frame: FrameType | None) -> None:
        if self.signal_number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal_number = number
