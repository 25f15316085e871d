"""What the process's memory allocator does with memory that was freed. Acts with glibc, elsewhere it does nothing."""

from __future__ import annotations

import ctypes
import sys
from typing import Any

# glibc's malloc.h
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
LARGEST_MMAP_THRESHOLD = 32 * 1024**2  # what glibc takes at most
NEVER = -1  # mallopt(3)


def keep_freed_memory() -> bool:
    """Let the heap keep what is freed, for the next tensors; returns whether the allocator took it.

    A training step frees its activations, and glibc gives the top of the heap back to the system, which clears every page
    anew in the next step: 1.6 % of a step, for the same peak (docs/lab_log.md). Holds until the process ends;
    `return_freed_memory` gives back what was kept so far.
    """
    mallopt = _function("mallopt")
    if mallopt is None:
        return False
    # setting one of them ends glibc's own adjusting of both
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)) and bool(mallopt(M_TRIM_THRESHOLD, NEVER))


def return_freed_memory() -> None:
    """Give back to the system what the heap keeps."""
    trim = _function("malloc_trim")
    if trim is not None:
        trim(0)


def _function(name: str) -> Any:
    """One of glibc's, or None where the C library is another."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
