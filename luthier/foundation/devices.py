"""What this machine has, and which precision it can do fast. `torch` is imported inside functions only."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Machine:
    """Cores, memory and accelerators. Memory in bytes."""

    cores: int
    memory_bytes: int
    memory_available_bytes: int
    cpu: str
    cpu_flags: tuple[str, ...]
    accelerators: tuple[dict[str, Any], ...]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


INTERESTING_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "amx_tile", "fma", "asimd", "bf16", "neon")


def cpu_name_and_flags() -> tuple[str, tuple[str, ...]]:
    """The processor's name and those of its flags that matter for matrix products, from /proc/cpuinfo where it is."""
    source = Path("/proc/cpuinfo")
    if not source.exists():
        import platform

        return platform.processor() or platform.machine(), ()
    name, flags = "", set()
    for line in source.read_text(encoding="utf-8", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("model name", "Processor") and not name:
            name = value.strip()
        if key.strip() in ("flags", "Features"):
            flags.update(value.split())
    return name, tuple(flag for flag in INTERESTING_FLAGS if flag in flags)


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def inspect_machine() -> Machine:
    """Look at the machine. Imports torch to ask for accelerators."""
    import psutil
    import torch

    memory = psutil.virtual_memory()
    accelerators = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            properties = torch.cuda.get_device_properties(index)
            accelerators.append({"name": properties.name, "memory_bytes": properties.total_memory})
    elif torch.backends.mps.is_available():
        accelerators.append({"name": "Apple MPS", "memory_bytes": memory.total})
    cpu, flags = cpu_name_and_flags()
    return Machine(
        cores=usable_cores(),
        memory_bytes=memory.total,
        memory_available_bytes=memory.available,
        cpu=cpu,
        cpu_flags=flags,
        accelerators=tuple(accelerators),
    )


def choose_device(use_cpu: bool = False) -> torch.device:
    """The device of this process: its CUDA device (LOCAL_RANK), Apple's, or the CPU."""
    import torch

    if use_cpu:
        return torch.device("cpu")
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    if torch.backends.mps.is_available():
        return torch.device("mps")
    return torch.device("cpu")


def fast_precisions(device: torch.device) -> frozenset[str]:
    """Names of the dtypes whose matrix products the device does in hardware."""
    import torch

    if device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return frozenset({"float32", "float16", *(["bfloat16"] if bf16 else [])})
    if device.type == "mps":
        return frozenset({"float32", "float16", "bfloat16"})
    flags = cpu_name_and_flags()[1]
    return frozenset({"float32", *(["bfloat16"] if {"avx512_bf16", "amx_bf16", "bf16"} & set(flags) else [])})


def autocast_precision(device: torch.device) -> str:
    """The precision of autocast in which whole steps are much faster than in float32, bf16 or fp16; "": there is none.

    On processors with tiles for bfloat16 (AMX) they took 0.4 to 0.75 of the time; with other units for it they were not
    measured.
    """
    if device.type == "cuda":
        return "bf16" if "bfloat16" in fast_precisions(device) else "fp16"
    return "bf16" if device.type == "cpu" and "amx_bf16" in cpu_name_and_flags()[1] else ""


def matmul_gflops(dtype_name: str, device: torch.device, size: int = 1024, seconds: float = 0.3) -> float:
    """Measured rate of square matrix products, in GFLOP/s. A slow dtype is measured on a smaller matrix first."""
    import torch

    dtype = getattr(torch, dtype_name)

    def once(width: int) -> float:
        left = torch.randn(width, width, device=device).to(dtype)
        started = time.perf_counter()
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize()
        return 2 * width**3 / (time.perf_counter() - started) / 1e9

    once(128)
    small = once(256)
    if small < 5:  # slow, or disturbed for the few milliseconds that so small a product takes
        return max(small, once(512))
    rates, deadline = [], time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        rates.append(once(size))
    return sorted(rates)[len(rates) // 2]


def free_memory_bytes(device: torch.device) -> int:
    """Memory that nobody uses now: of a CUDA device, else of the machine."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def compute_threads() -> int:
    """Threads that torch computes with: another number sums in another order."""
    import torch

    return torch.get_num_threads()


def resident_bytes() -> int:
    """Resident memory of this process now."""
    import psutil

    return int(psutil.Process().memory_info().rss)
