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


@pytest.mark.parametrize(
    ("flags", "device", "precision"),
    [
        (("avx2",), "cpu", ""),
        (("avx512_bf16",), "cpu", ""),
        (("avx512_bf16", "amx_bf16"), "cpu", "bf16"),
        (("amx_bf16",), "mps", ""),
    ],
)
def test_autocast_is_chosen_where_steps_are_faster(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], device: str, precision: str
) -> None:
    monkeypatch.setattr(devices, "cpu_name_and_flags", lambda: ("cpu", flags))
    assert devices.autocast_precision(torch.device(device)) == precision


@pytest.mark.parametrize(("units", "precision"), [(True, "bf16"), (False, "fp16")])
def test_on_cuda_devices_autocast_is_in_what_they_multiply(
    monkeypatch: pytest.MonkeyPatch, units: bool, precision: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: units)
    assert devices.autocast_precision(torch.device("cuda")) == precision


def test_the_rate_is_measured() -> None:
    assert devices.matmul_gflops("float32", torch.device("cpu"), size=256, seconds=0.02) > 0.1


def test_use_cpu_wins() -> None:
    assert devices.choose_device(use_cpu=True).type == "cpu"


def test_resident_memory() -> None:
    assert devices.resident_bytes() > 1e7
