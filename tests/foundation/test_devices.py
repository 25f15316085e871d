"""What the machine has."""

from __future__ import annotations

import json

import pytest
import torch

from luthier.foundation import devices


def test_the_machine_is_described() -> None:
    machine = devices.inspect_machine()
    assert machine.cores >= 1
    assert 0 < machine.memory_available_bytes <= machine.memory_bytes
    json.dumps(machine.as_dict())


@pytest.mark.parametrize(("flags", "fast"), [(("avx2",), False), (("amx_bf16",), True), (("avx512_bf16",), True)])
def test_bf16_is_fast_only_with_units_for_it(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], fast: bool
) -> None:
    monkeypatch.setattr(devices, "cpu_name_and_flags", lambda: ("cpu", flags))
    assert ("bfloat16" in devices.fast_precisions(torch.device("cpu"))) == fast


def test_the_rate_is_measured() -> None:
    assert devices.matmul_gflops("float32", torch.device("cpu"), size=256, seconds=0.02) > 0.1


def test_use_cpu_wins() -> None:
    assert devices.choose_device(use_cpu=True).type == "cpu"


def test_resident_memory() -> None:
    assert devices.resident_bytes() > 1e7
