"""Devices to plan for: this machine's, a card by its name, or so many of so many gigabytes.

Memory, memory bandwidth and dense tensor-core rates (without sparsity) are those of the makers' data sheets; links are
each card's sum of both directions, over NVLink where a card has it, else PCI Express.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from luthier.foundation.devices import choose_device, fast_precisions, inspect_machine
from luthier.foundation.errors import UserError
from luthier.foundation.registry import nearest

GB = 1000**3
GIB = 1024**3


@dataclass(frozen=True, slots=True)
class Device:
    """One device, or a class of them.

    Args:
        name: as it is shown.
        memory_bytes: all of its memory.
        flops_per_second: peak of dense matrix products in 16 bits; of float32 on a processor. 0: not known.
        float32_flops: peak in float32. bytes_per_second: of its memory; 0: not known.
        link_bytes_per_second: between devices, both directions together.
        has_bfloat16: whether it multiplies bfloat16 in hardware.
        kind: cuda, mps or cpu.
        source: where the figures stand.
    """

    name: str
    memory_bytes: int
    flops_per_second: float = 0.0
    float32_flops: float = 0.0
    bytes_per_second: float = 0.0
    link_bytes_per_second: float = 0.0
    has_bfloat16: bool = True
    kind: str = "cuda"
    source: str = ""

    @property
    def usable_bytes(self) -> int:
        """What a process may take: a GPU's driver keeps a little, and a machine has other work."""
        return int(self.memory_bytes * (0.95 if self.kind == "cuda" else 0.9))


@dataclass(frozen=True, slots=True)
class Hardware:
    """So many equal devices.

    Args:
        is_this_machine: whether the plan may time operations here.
        host_bytes: memory of the machine that they stand in; 0: not known.
    """

    device: Device
    count: int = 1
    is_this_machine: bool = False
    host_bytes: int = 0

    def __str__(self) -> str:
        return self.device.name if self.is_this_machine and self.count == 1 else f"{self.count} x {self.device.name}"


def _card(
    name: str, gib: int, tflops: float, float32: float, gbs: float, link: float, source: str, bfloat16: bool = True
) -> Device:
    return Device(name, gib * GIB, tflops * 1e12, float32 * 1e12, gbs * 1e9, link * 1e9, bfloat16, "cuda", source)


# name, GiB, TFLOP/s in 16 bits and in float32, GB/s of memory, GB/s of the link, source
CARDS: dict[str, Device] = {
    card.name: card
    for card in (
        _card("T4", 16, 65, 8.1, 320, 32, "NVIDIA T4 data sheet", bfloat16=False),
        _card("V100-16GB", 16, 125, 15.7, 900, 300, "NVIDIA V100 SXM2 data sheet", bfloat16=False),
        _card("V100-32GB", 32, 125, 15.7, 900, 300, "NVIDIA V100 SXM2 data sheet", bfloat16=False),
        _card("RTX2080Ti", 11, 53.8, 13.4, 616, 32, "NVIDIA Turing architecture white paper", bfloat16=False),
        _card("RTX3060", 12, 51.2, 12.7, 360, 32, "NVIDIA Ampere GA102 white paper"),
        _card("RTX3090", 24, 71, 35.6, 936, 32, "NVIDIA Ampere GA102 white paper"),
        _card("RTX4060Ti-16GB", 16, 88, 22.1, 288, 32, "NVIDIA Ada architecture white paper"),
        _card("RTX4080", 16, 97.5, 48.7, 717, 64, "NVIDIA Ada architecture white paper"),
        _card("RTX4090", 24, 165.2, 82.6, 1008, 64, "NVIDIA Ada architecture white paper"),
        _card("RTX5090", 32, 209.5, 104.8, 1792, 128, "NVIDIA RTX Blackwell architecture white paper"),
        _card("A10", 24, 125, 31.2, 600, 64, "NVIDIA A10 data sheet"),
        _card("A30", 24, 165, 10.3, 933, 200, "NVIDIA A30 data sheet"),
        _card("A40", 48, 149.7, 37.4, 696, 112.5, "NVIDIA A40 data sheet"),
        _card("A6000", 48, 154.8, 38.7, 768, 112.5, "NVIDIA RTX A6000 data sheet"),
        _card("A100-40GB", 40, 312, 19.5, 1555, 600, "NVIDIA A100 data sheet"),
        _card("A100-80GB", 80, 312, 19.5, 2039, 600, "NVIDIA A100 data sheet"),
        _card("A800-80GB", 80, 312, 19.5, 2039, 400, "NVIDIA A800 data sheet"),
        _card("L4", 24, 121, 30.3, 300, 64, "NVIDIA L4 data sheet"),
        _card("L20", 48, 119.5, 59.8, 864, 64, "NVIDIA L20 data sheet"),
        _card("L40S", 48, 362, 91.6, 864, 64, "NVIDIA L40S data sheet"),
        _card("H20", 96, 148, 44, 4000, 900, "NVIDIA H20 data sheet"),
        _card("H100-80GB", 80, 989, 67, 3350, 900, "NVIDIA H100 SXM data sheet"),
        _card("H800-80GB", 80, 989, 67, 3350, 400, "NVIDIA H800 SXM data sheet"),
        _card("H200", 141, 989, 67, 4800, 900, "NVIDIA H200 SXM data sheet"),
        _card("B200", 180, 2250, 75, 8000, 1800, "NVIDIA HGX B200 data sheet"),
        _card("MI250X-GCD", 64, 191.5, 23.9, 1638, 350, "AMD Instinct MI250X data sheet, one of its two halves"),
        _card("MI300X", 192, 1307, 163.4, 5300, 896, "AMD Instinct MI300X data sheet"),
        _card("910B", 64, 313, 94, 1600, 392, "Huawei Atlas 800T A2 data sheet"),
    )
}
# what a size alone stands for: the commonest card of that memory, for an idea of the time
SIZES = {
    11: "RTX2080Ti",
    12: "RTX3060",
    16: "T4",
    24: "RTX3090",
    32: "V100-32GB",
    40: "A100-40GB",
    48: "A6000",
    80: "A100-80GB",
    96: "H20",
    141: "H200",
}
VARIANTS = ("ti", "super", "laptop", "mobile", "max")  # a word behind a card's name that makes it another
WORDED = re.compile(r"(?:(?P<count>\d+)\s*x\s*)?(?P<what>.+)", re.IGNORECASE)
GIGABYTES = re.compile(r"(?P<size>\d+(?:\.\d+)?)\s*(?:GB|GiB|G)", re.IGNORECASE)


def parse_hardware(text: str) -> Hardware:
    """Devices as a person writes them: `1x24GB`, `8x80GB`, `4xA100-80GB`, `rtx4090`.

    Raises:
        UserError: no such card.
    """
    match = WORDED.fullmatch(text.strip())
    what = match["what"].strip() if match else ""
    count = int(match["count"] or 1) if match else 0
    if not what or count < 1:
        raise UserError(f"the hardware {text!r} is not understood.", "Write it as 1x24GB, 8x80GB or 4xA100-80GB.")
    if size := GIGABYTES.fullmatch(what):
        return Hardware(_of_size(float(size["size"])), count)
    wanted = _bare(what)
    for name in (wanted, f"rtx{wanted}"):
        # a card of several sizes may be named without its size, or with its beginning: then the larger that fits
        if found := [card for known, card in CARDS.items() if _names(name, known)]:
            return Hardware(found[-1], count)
    close = nearest(wanted, {_bare(name): name for name in CARDS})
    named = [name for name in CARDS if _bare(name) in close]
    hint = f"Did you mean {' or '.join(named)}? " if named else ""
    raise UserError(
        f"there is no card named {what!r} in the table.",
        f"{hint}Known: {', '.join(CARDS)}; or a size, such as 24GB.",
    )


def _names(bare: str, known: str) -> bool:
    """Whether a bare name means a card of the table, whose own name, but for the size behind it, must stand there whole:
    an RTX4060 is no RTX4060Ti."""
    return _bare(known).startswith(bare) and bare.startswith(_bare(known.split("-")[0]))


def this_machine(use_cpu: bool = False) -> Hardware:
    """The devices that training would take here: the GPUs, else the processor with the machine's memory."""
    machine = inspect_machine()
    has_bfloat16 = "bfloat16" in fast_precisions(choose_device(use_cpu))
    if machine.accelerators and not use_cpu:
        name, memory = machine.accelerators[0]["name"], machine.accelerators[0]["memory_bytes"]
        model = named_card(name, memory) or Device(name, memory)
        device = replace(
            model,
            name=name,
            memory_bytes=memory,
            has_bfloat16=has_bfloat16,
            kind="mps" if "MPS" in name else "cuda",
        )
        return Hardware(device, len(machine.accelerators), True, machine.memory_bytes)
    name = f"{machine.cpu or 'processor'}, {machine.cores} core{'s' if machine.cores != 1 else ''}"
    device = Device(name, machine.memory_bytes, has_bfloat16=has_bfloat16, kind="cpu")
    return Hardware(device, 1, True, machine.memory_bytes)


def named_card(name: str, memory_bytes: int) -> Device | None:
    """The card of the table that a driver means by a name such as `NVIDIA A100-SXM4-80GB`; of several sizes the nearest.

    It is named by whole words: an RTX A4000 is no A40, an L40 no L4, an RTX 3060 Ti no RTX 3060.
    """
    words = re.findall(r"[a-z0-9]+", name.lower())
    runs = {
        "".join(words[start:end])
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        if end == len(words) or words[end] not in VARIANTS
    }
    found = [card for known, card in CARDS.items() if _bare(known.split("-")[0]) in runs]
    return min(found, key=lambda card: abs(card.memory_bytes - memory_bytes), default=None)


def _of_size(size: float) -> Device:
    """A device of so much memory; its speed is that of the commonest card of that size."""
    alike = CARDS.get(SIZES.get(round(size), ""))
    if alike is None:
        return Device(f"{size:g}GB", int(size * GIB), source="its size alone")
    return replace(alike, name=f"{size:g}GB", memory_bytes=int(size * GIB), source=f"speed of a {alike.name}")


def _bare(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower()).removeprefix("nvidia").removeprefix("geforce")
