"""What kernels borrow from the libraries that torch has loaded: its threads, and its matrix product.

A pool of threads beside torch's would fight with it for the cores, since OpenMP's threads go on waiting in a loop for
milliseconds after each operation of torch's. So kernels run on those very threads (`GOMP_parallel`, by which compilers start
a parallel region), and multiply by the BLAS that torch multiplies by.
"""

from __future__ import annotations

import ctypes
import functools
import sys
from pathlib import Path

import torch

# BLAS's product of matrices; OpenMP's number of a thread, its count, and the start of a parallel region
NAMES = {
    "luthier_sgemm": "sgemm_",
    "luthier_thread": "omp_get_thread_num",
    "luthier_threads": "omp_get_num_threads",
    "luthier_parallel": "GOMP_parallel",
}


@functools.cache
def addresses() -> dict[str, int] | None:
    """Where the functions lie, by the names that kernels know them by; None where torch came without one of them.

    torch's wheels for Linux have all four; those for macOS and Windows start their threads otherwise.
    """
    path = Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"
    if sys.platform != "linux" or not path.is_file():
        return None
    # the process first, as its loader does for torch: a runtime of OpenMP that was loaded before goes first, and there must
    # be only one; then the library, which is loaded already, and what it depends on
    places = ctypes.CDLL(None), ctypes.CDLL(str(path))
    found: dict[str, int] = {}
    for own, name in NAMES.items():
        function = next((function for place in places if (function := getattr(place, name, None)) is not None), None)
        if function is None:
            return None
        found[own] = ctypes.cast(function, ctypes.c_void_p).value or 0
    return found


def run_on_threads(kernel: int, arguments: int, threads: int) -> None:
    """Call a function of C, `void kernel(void *arguments)`, by its address, once on each of torch's threads.

    Fewer threads may come than are asked for, as OpenMP sees fit: a kernel asks how many there are.
    """
    found = addresses()
    assert found is not None
    start = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    start(found["luthier_parallel"])(kernel, arguments, threads, 0)
