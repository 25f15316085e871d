"""The allocator keeps or returns freed memory, seen in the process's resident memory (a process of its own: it lasts)."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import sys
from pathlib import Path

from luthier.foundation.heap import keep_freed_memory, return_freed_memory

def resident_mib():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

kept = sys.argv[1] == "keep" and keep_freed_memory()
before = resident_mib()
tensors = [bytearray(8 * 2**20) for _ in range(16)]
for tensor in tensors:
    tensor[::4096] = b"x" * len(tensor[::4096])
del tensors, tensor
freed = resident_mib()
return_freed_memory()
print(int(kept), round(freed - before), round(resident_mib() - before))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's heap")
@pytest.mark.parametrize(("how", "least", "most"), [("keep", 100, 140), ("leave", -1, 20)])
def test_freed_memory_stays_with_the_heap_until_it_is_returned(how: str, least: int, most: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM, how], capture_output=True, text=True, check=True)
    kept, freed, returned = map(int, done.stdout.split())
    assert kept == (how == "keep")
    assert least <= freed <= most
    assert returned <= 20
