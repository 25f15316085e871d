"""Over a hundred inputs that can't be used: each a clear error or a counted rejection, never a traceback, a hang, a
growth of memory without bound, or a row that disappears."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from luthier.config.data_section import DataConfig
from luthier.data.preparing import LoadedRecords, load_records
from luthier.foundation.errors import DataError
from tests.data.malformed_files import FILES

SECONDS = 5
GROWTH_BYTES = 400 * 1024 * 1024
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class TooSlowError(BaseException):
    """No code may take it for an error of its own."""


@contextmanager
def limits() -> Iterator[None]:
    """At most SECONDS, and (where Linux counts it) at most GROWTH_BYTES more memory than before."""

    def late(number: int, frame: object) -> None:
        raise TooSlowError(f"took over {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    if CLEAR.exists():
        CLEAR.write_text("5")  # the peak counts from here
    start = _memory("VmRSS")
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    grown = _memory("VmHWM") - start
    assert grown < GROWTH_BYTES, f"{grown:,} bytes more"


def _memory(name: str) -> int:
    if not STATUS.exists():
        return 0
    found = re.search(rf"{name}:\s*(\d+) kB", STATUS.read_text())
    assert found
    return int(found[1]) * 1024


def load(path: Path, invalid_rows: str, **settings: object) -> LoadedRecords:
    with limits():
        return load_records(DataConfig(train=[{"path": str(path), **settings}], invalid_rows=invalid_rows), 0)


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_read(name: str, tmp_path: Path) -> None:
    write, pattern = FILES[name]
    path = write(tmp_path)
    for invalid_rows in ("error", "reject"):
        with pytest.raises(DataError) as caught:
            load(path, invalid_rows)
        error = caught.value
        assert re.search(pattern, str(error)), str(error)
        assert error.remedy and str(path.parent if path.name.startswith("*") else tmp_path) in error.problem
        assert len(str(error)) < 3000 and "Traceback" not in str(error)
