"""SIGTERM ends a block whatever it is in, and only SIGTERM does."""

from __future__ import annotations

import os
import signal
import time

import pytest

from luthier.foundation.errors import Interrupted
from luthier.foundation.signals import ends_at_sigterm


def test_code_that_takes_any_failure_for_an_answer_does_not_take_sigterm_for_one() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Interrupted, match="stopped") as stopped, ends_at_sigterm("stopped.", "go on"):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except Exception:
            pytest.fail("it was taken for a failure")
    assert (stopped.value.exit_status, stopped.value.remedy) == (143, "go on")
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_stays_what_it_is() -> None:
    with pytest.raises(KeyboardInterrupt), ends_at_sigterm("stopped."):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)
