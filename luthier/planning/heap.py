"""What a processor's memory allocator keeps beyond the tensors that live: measured with the allocator itself.

glibc carves tensors and autograd's small records from one heap. Small records that outlive a tensor leave holes that no
tensor of the same size fits in again, so a process can hold twice the memory of its tensors (docs/plan.md). While a
batch is traced, each fake tensor is given memory of its true size here, which is never touched and so takes none; the
heap grows as it would in training.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import sys
from collections.abc import Callable

ALIGNMENT = 64  # torch's
SAMPLE_EVERY = 40  # allocations between two looks at the heap
LARGE_BYTES = 8 * 1024**2


class _Statistics(ctypes.Structure):
    """glibc's struct mallinfo2: all fields are size_t."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost",
        )
    ]  # fmt: skip


class Heap:
    """The process's allocator, and how far it has grown.

    Args:
        limit_bytes: no more than so much is asked for at one time; beyond it the heap is not measured.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("c"))
        self._library.mallinfo2.restype = _Statistics
        self._library.free.argtypes = [ctypes.c_void_p]
        self._limit = limit_bytes
        self._held = self._count = 0
        self._start = self._size()
        self.largest = 0
        self.complete = True

    @property
    def growth(self) -> int:
        """Bytes that the heap grew by, at most."""
        return self.largest

    def hold(self, size: int) -> Callable[[], None]:
        """Take memory for a tensor; returns what gives it back."""
        place = ctypes.c_void_p()
        if self._held + size > self._limit:
            self.complete = False
            return lambda: None
        wrong = self._library.posix_memalign(ctypes.byref(place), ctypes.c_size_t(ALIGNMENT), ctypes.c_size_t(size))
        if wrong:
            self.complete = False
            return lambda: None
        self._held += size
        self._count += 1
        if size >= LARGE_BYTES or self._count % SAMPLE_EVERY == 0:
            self.largest = max(self.largest, self._size() - self._start)

        def give_back() -> None:
            self._held -= size
            self._library.free(place)

        return give_back

    def settle(self) -> None:
        """Give the heap's free pages back to the system."""
        self._library.malloc_trim(0)

    def _size(self) -> int:
        found = self._library.mallinfo2()
        return int(found.arena + found.hblkhd)


def heap_here(limit_bytes: int) -> Heap | None:
    """This process's heap; None where the C library is not glibc 2.33 or later."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    return Heap(limit_bytes) if hasattr(library, "mallinfo2") and hasattr(library, "malloc_trim") else None
