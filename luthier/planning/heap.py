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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from luthier.foundation.heap import LARGEST_MMAP_THRESHOLD, keep_freed_memory

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


@dataclass(frozen=True, slots=True)
class Kept:
    """What the allocator has of a pass, in bytes.

    Args:
        arena: of the heap at its largest, which training never gives back. mapped: of tensors that are too large for it
            (`LARGEST_MMAP_THRESHOLD`), at the most at one time. mapped_at_end: those of the gradients. room: for large
            tensors where activations were.
    """

    arena: int
    mapped: int
    mapped_at_end: int
    room: int = 0

    @property
    def growth(self) -> int:
        """What a process grows by: in a second pass the heap is at its largest from the start."""
        return self.arena + self.mapped

    def beside(self, tensors: Sequence[int]) -> Kept:
        """The same where tensors of so many bytes were there before the pass and stay."""
        large = sum(size for size in tensors if size >= LARGEST_MMAP_THRESHOLD)
        return Kept(self.arena + sum(tensors) - large, self.mapped + large, self.mapped_at_end + large, self.room)

    def update_beyond(self, tensors: Sequence[int], gradients: int) -> int:
        """What an optimizer's update takes beyond that growth.

        Args:
            tensors: bytes of each that it works with at one time: small ones find room where activations were, large ones as
                far as `room` goes and are mapped else. gradients: bytes of all, which are there.
        """
        large = sum(size for size in tensors if size >= LARGEST_MMAP_THRESHOLD)
        arena = max(self.arena, gradients - self.mapped_at_end + sum(tensors) - large)
        return max(0, arena + self.mapped_at_end + max(0, large - self.room) - self.growth)


class Heap:
    """The process's allocator under training's settings, and how far it has grown.

    Args:
        limit_bytes: no more than so much is asked for at one time; beyond it the heap is not measured.
    """

    def __init__(self, limit_bytes: int) -> None:
        self._library = ctypes.CDLL(ctypes.util.find_library("c"))
        self._library.mallinfo2.restype = _Statistics
        self._library.free.argtypes = [ctypes.c_void_p]
        self._limit = limit_bytes
        keep_freed_memory()
        self._held = self._count = 0
        self._arena_before, self._mapped_before = self._sizes()
        self._arena = self._mapped = 0
        self.complete = True

    def kept(self, large: int) -> Kept:
        """What it has grown by, at the end of a pass, while the gradients are there.

        Args:
            large: bytes of the tensors for which it looks how many find room.
        """
        self._look()
        before = self._sizes()
        found = Kept(self._arena, self._mapped, max(0, before[1] - self._mapped_before))
        taken: list[Callable[[], None]] = []
        while large >= LARGEST_MMAP_THRESHOLD and self.complete and self._sizes() == before:
            taken.append(self.hold(large))
        for give_back in taken:
            give_back()
        return replace(found, room=max(0, len(taken) - 1) * large)

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
            self._look()

        def give_back() -> None:
            self._held -= size
            self._library.free(place)

        return give_back

    def settle(self) -> None:
        """Give the heap's free pages back to the system."""
        self._library.malloc_trim(0)

    def _look(self) -> None:
        arena, mapped = self._sizes()
        self._arena = max(self._arena, arena - self._arena_before)
        self._mapped = max(self._mapped, mapped - self._mapped_before)

    def _sizes(self) -> tuple[int, int]:
        """Of the heap proper, and of what is mapped beside it."""
        found = self._library.mallinfo2()
        return int(found.arena), int(found.hblkhd)


def heap_here(limit_bytes: int) -> Heap | None:
    """This process's heap; None where the C library is not glibc 2.33 or later."""
    if sys.platform != "linux":
        return None
    library = ctypes.CDLL(ctypes.util.find_library("c"))
    return Heap(limit_bytes) if hasattr(library, "mallinfo2") and hasattr(library, "malloc_trim") else None
