"""What transformers and peft say that tells nobody anything."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_peft() -> Iterator[None]:
    """Without the warnings about transformers' renamed attributes that peft still asks for: no user can mend those."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is deprecated and will be removed in v6.*", category=FutureWarning)
        yield


@contextmanager
def quiet_bars() -> Iterator[None]:
    """Without transformers' progress bars: a checkpoint amid the training display, a load that takes a moment."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
