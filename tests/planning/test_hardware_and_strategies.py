"""Devices by name, and what each holds under a strategy."""

from __future__ import annotations

import pytest

from luthier.foundation.devices import Machine
from luthier.foundation.errors import UserError
from luthier.planning.hardware import CARDS, GIB, named_card, parse_hardware, this_machine
from luthier.planning.strategies import (
    BUCKET_BYTES,
    STRATEGIES,
    find_strategy,
    from_and_to_host,
    linked,
    shares,
    updated,
)

GB = 10**9


@pytest.mark.parametrize(
    ("text", "name", "count", "gib"),
    [
        ("1x24GB", "24GB", 1, 24),
        ("8x80GB", "80GB", 8, 80),
        ("24gb", "24GB", 1, 24),
        ("4 x A100-80GB", "A100-80GB", 4, 80),
        ("rtx 4090", "RTX4090", 1, 24),
        ("4090", "RTX4090", 1, 24),
        ("2xNVIDIA L40S", "L40S", 2, 48),
        ("a100", "A100-80GB", 1, 80),
        ("a100 40", "A100-40GB", 1, 40),
        ("2 x v100-16g", "V100-16GB", 2, 16),
        ("a10", "A10", 1, 24),
        ("4060 Ti", "RTX4060Ti-16GB", 1, 16),
        ("1x7.5GB", "7.5GB", 1, 7.5),
    ],
)
def test_hardware_by_name(text: str, name: str, count: int, gib: float) -> None:
    found = parse_hardware(text)
    assert (found.device.name, found.count, found.device.memory_bytes) == (name, count, int(gib * GIB))
    assert not found.is_this_machine


@pytest.mark.parametrize("text", ["", "0x24GB", "x24GB", "8x", "A1000", "h10", "RTX"])
def test_unknown_hardware_is_refused(text: str) -> None:
    with pytest.raises(UserError):
        parse_hardware(text)


@pytest.mark.parametrize(
    ("text", "like"), [("RTX4060", "RTX4060Ti-16GB"), ("2080", "RTX2080Ti"), ("L40", "L40S"), ("910", "910B")]
)
def test_a_card_is_not_another_whose_name_begins_alike(text: str, like: str) -> None:
    """An RTX 4060 has 8 GB, the 4060 Ti of the table 16."""
    with pytest.raises(UserError, match=f"there is no card named '{text}'") as told:
        parse_hardware(text)
    assert f"{like}" in told.value.remedy and "or a size, such as 24GB" in told.value.remedy


def test_a_misspelt_card_gets_the_nearest() -> None:
    with pytest.raises(UserError, match="RTX4090"):
        parse_hardware("rtx4091")


def test_the_table_of_cards_is_in_order() -> None:
    for card in CARDS.values():
        assert card.source and card.memory_bytes and card.flops_per_second > card.float32_flops > 0
        assert card.bytes_per_second > card.link_bytes_per_second > 0, card.name


def test_this_machine_is_where_operations_are_timed() -> None:
    found = this_machine(use_cpu=True)
    assert found.is_this_machine and found.device.kind == "cpu" and found.device.memory_bytes > GIB


@pytest.mark.parametrize(
    ("name", "gib", "card"),
    [
        ("NVIDIA A100-SXM4-80GB", 80, "A100-80GB"),
        ("NVIDIA A100-PCIE-40GB", 40, "A100-40GB"),
        ("Tesla V100-SXM2-16GB", 16, "V100-16GB"),
        ("Tesla T4", 15, "T4"),
        ("NVIDIA GeForce RTX 2080 Ti", 11, "RTX2080Ti"),
        ("NVIDIA RTX A6000", 48, "A6000"),
        ("NVIDIA L40S", 45, "L40S"),
        ("NVIDIA H100 80GB HBM3", 80, "H100-80GB"),
        ("AMD Instinct MI250X / MI250", 64, "MI250X-GCD"),
        # like one of the table, and none of it
        ("NVIDIA RTX A4000", 16, None),
        ("NVIDIA L40", 45, None),
        ("NVIDIA A10G", 22, None),
        ("NVIDIA GeForce RTX 3060 Ti", 8, None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, None),
        ("NVIDIA GeForce GTX 1080", 8, None),
    ],
)
def test_drivers_name_cards_by_whole_words(name: str, gib: int, card: str | None) -> None:
    found = named_card(name, gib * GIB)
    assert (found.name if found else None) == card


@pytest.mark.parametrize("does_bfloat16", [True, False])
def test_a_card_here_multiplies_bfloat16_if_torch_says_so(does_bfloat16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A GTX 1080 is planned with float32 weights, as they will be loaded."""
    card = {"name": "NVIDIA GeForce GTX 1080", "memory_bytes": 8 * GIB}
    machine = Machine(8, 32 * GIB, 16 * GIB, "processor", (), (card, card))
    fast = frozenset({"float32", "float16", *(["bfloat16"] if does_bfloat16 else [])})
    monkeypatch.setattr("luthier.planning.hardware.inspect_machine", lambda: machine)
    monkeypatch.setattr("luthier.planning.hardware.fast_precisions", lambda device: fast)
    found = this_machine()
    assert found.device.has_bfloat16 == does_bfloat16
    assert (found.count, found.device.kind, found.device.memory_bytes, found.host_bytes) == (
        2,
        "cuda",
        8 * GIB,
        32 * GIB,
    )


# a model of 7 billion parameters trained whole by Adam in mixed precision, on 64 devices: figure 1 of the ZeRO paper counts
# 2 + 2 + 12 bytes for each parameter, and gets 31.4, 16.6 and 1.9 GB for its three stages with 7.5 billion
@pytest.mark.parametrize(("name", "gigabytes"), [("ddp", 120), ("zero-1", 31.4), ("zero-2", 16.6), ("zero-3", 1.9)])
def test_shares_are_those_of_the_zero_paper(name: str, gigabytes: float) -> None:
    count = 7_500_000_000
    found = shares(STRATEGIES[name], 64, weights=2 * count, gradients=2 * count, states=12 * count, unit=0)
    assert (found.weights + found.gradients + found.optimizer_states) / GB == pytest.approx(gigabytes, abs=0.06)
    assert found.gathered == BUCKET_BYTES and found.host == 0


def test_what_is_gathered_and_what_waits_in_the_host() -> None:
    sizes = {"weights": 100 * GB, "gradients": 1 * GB, "states": 2 * GB, "unit": 3 * GB}
    whole = shares(STRATEGIES["single"], 1, **sizes)
    assert (whole.weights, whole.gradients, whole.optimizer_states, whole.gathered) == (100 * GB, GB, 2 * GB, 0)
    sharded = shares(STRATEGIES["fsdp"], 4, **sizes)
    assert sharded.weights == 25 * GB and sharded.gathered == BUCKET_BYTES + 6 * GB
    offloaded = shares(STRATEGIES["offload"], 4, **sizes)
    assert offloaded.weights == offloaded.optimizer_states == 0
    assert offloaded.host == sharded.weights + sharded.gradients + sharded.optimizer_states


def test_what_goes_over_the_link() -> None:
    """One half of the weights learns; on 4 devices each sends three quarters of what it holds or gathers."""
    sizes = {"batches": 5, "weights": 80 * GB, "trained": 40 * GB, "gradients": 40 * GB}
    sent = {name: linked(strategy, 4, **sizes) / GB for name, strategy in STRATEGIES.items()}
    assert sent == {
        "single": 0,
        "ddp": 0.75 * (2 * 40),
        "zero-1": 0.75 * (40 + 40),
        "zero-2": 0.75 * (5 * 40 + 40),
        "zero-3": 0.75 * 5 * (2 * 80 + 40),
        "fsdp": 0.75 * 5 * (2 * 80 + 40),
        "offload": 0.75 * 5 * (2 * 80 + 40),
    }
    assert all(linked(strategy, 1, **sizes) == 0 for strategy in STRATEGIES.values())
    frozen = linked(STRATEGIES["fsdp"], 4, batches=1, weights=80 * GB, trained=0, gradients=0)
    assert frozen == 0.75 * 2 * 80 * GB  # gathered forward and backward, nothing summed


def test_what_comes_from_the_host() -> None:
    sizes = {"batches": 2, "weights": 80 * GB, "gradients": 40 * GB}
    assert from_and_to_host(STRATEGIES["offload"], 1, **sizes) == 2 * (2 * 80 + 40) * GB
    assert from_and_to_host(STRATEGIES["offload"], 4, **sizes) == 2 * (2 * 80 + 40) * GB / 4
    assert from_and_to_host(STRATEGIES["zero-3"], 4, **sizes) == 0


def test_an_update_moves_what_a_device_holds() -> None:
    sizes = {"trained": 4 * GB, "states": 8 * GB, "gradients": 4 * GB}
    moved = {name: updated(strategy, 4, **sizes) / GB for name, strategy in STRATEGIES.items()}
    whole = 3 * 4 + 2 * 4 + 2 * 8
    assert moved["ddp"] == moved["single"] == moved["offload"] == whole  # offload: all devices' in one memory
    assert moved["zero-1"] == 3 * 4 + (2 * 4 + 2 * 8) / 4
    assert moved["zero-2"] == moved["zero-3"] == moved["fsdp"] == whole / 4


def test_strategies_by_name() -> None:
    assert find_strategy(None, 1).name == "single" and find_strategy(None, 2).name == "ddp"
    assert find_strategy("ZeRO_2", 2).name == "zero-2" and find_strategy("zero3", 8).name == "zero-3"
    with pytest.raises(UserError, match="zero-1"):
        find_strategy("zero-4", 2)
    with pytest.raises(UserError, match="one device"):
        find_strategy("single", 2)


def test_strategies_say_whether_they_run() -> None:
    assert STRATEGIES["single"].runs_here and STRATEGIES["ddp"].runs_here
