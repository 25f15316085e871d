"""Fixtures shared by all rooms' tests."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
from pathlib import Path

import pytest

# tiny models gain nothing from threads, and lose much where several tests share two cores
os.environ.setdefault("OMP_NUM_THREADS", "1")
# what tests prepare is of no use to anybody else; the folder goes when this process ends
_DATA_CACHE = tempfile.TemporaryDirectory(prefix="luthier-test-cache-")
os.environ["LUTHIER_DATA_CACHE"] = _DATA_CACHE.name
# a shell lets what it starts in the background ignore Ctrl-C, and so would every process that a test starts
if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """The default model's folder, fetched once per machine (LUTHIER_HOME). Mark the test `@pytest.mark.network`."""
    from luthier.config.schema import ModelConfig
    from luthier.model.resolving import resolve

    return resolve(ModelConfig(name="smollm2-135m"))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny random Llama, a tokenizer and a ChatML template. Don't write into it."""
    from tests.tiny import tiny_folder

    return tiny_folder(tmp_path_factory.mktemp("models") / "tiny-llama")


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """24 alpaca rows."""
    from tests.tiny import write_rows

    return write_rows(tmp_path / "rows.jsonl")
