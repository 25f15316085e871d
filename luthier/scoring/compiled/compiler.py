"""numba, set up for kernels: what of C they may call, where their machine code is kept, and whether they work here."""

from __future__ import annotations

import functools
import hashlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils._python_dispatch import _disable_current_modes

from luthier.foundation.errors import how_to_install
from luthier.foundation.files import home
from luthier.foundation.progress import say
from luthier.scoring.compiled.torch_library import addresses, run_on_threads

NOT_INSTALLED = "numba is not installed"
WRONG = "a kernel gave wrong numbers on this machine"
_off = False


def missing() -> str | None:
    """Why kernels are not used, for people; None: they are."""
    return "they are switched off" if _off else _missing()


@functools.cache
def _missing() -> str | None:
    if _switched_off_by_environment():
        return "LUTHIER_KERNELS switches them off"
    if find_spec("numba") is None:
        return NOT_INSTALLED
    if addresses() is None:
        return "this build of torch does not show its threads and products"
    try:
        numba()
        _make_once()
        right = _works()
    # of numpy, say, numba takes some versions only; NUMBA_DISABLE_JIT stands; a newer one compiles otherwise
    except Exception as error:
        return f"numba cannot make them: {(str(error).strip().splitlines() or [type(error).__name__])[0]}"
    return None if right else WRONG


def advice() -> str | None:
    """What people could gain, or should look at; None: kernels are used, or nothing can be done, or they chose so."""
    if addresses() is None or _switched_off_by_environment() or missing() is None:
        return None
    if missing() == NOT_INSTALLED:
        return f"{NOT_INSTALLED}; with it a training step takes an eighth less time: {how_to_install('cpu')}"
    return f"{missing()}, so torch's own operations are used"


def made_by() -> str:
    """What compiles the kernels, with its version, or "nothing"; none is made for this."""
    if addresses() is None or _switched_off_by_environment() or find_spec("numba") is None:
        return "nothing"
    return f"numba {metadata.version('numba')}"


def _switched_off_by_environment() -> bool:
    return os.environ.get("LUTHIER_KERNELS", "on").lower() in ("off", "0", "false", "no")


@contextmanager
def switched_off() -> Iterator[None]:
    """Everything is computed by torch's own operations meanwhile."""
    global _off
    before, _off = _off, True
    try:
        yield
    finally:
        _off = before


@functools.cache
def numba() -> Any:
    """The package, told where the functions of C lie and where machine code goes."""
    import llvmlite.binding
    import numba

    for name, address in (addresses() or {}).items():
        llvmlite.binding.add_symbol(name, address)
    numba.config.CACHE_DIR = str(machine_code())
    return numba


def machine_code() -> Path:
    """Where kernels are kept from run to run.

    numba looks at the file of a kernel to see whether it has changed, not at those of what it calls; so there is a place for
    each state of this folder, under numba's own NUMBA_CACHE_DIR where that is set.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(path.read_bytes())
    chosen = os.environ.get("NUMBA_CACHE_DIR")
    return (Path(chosen) if chosen else home() / "kernels") / digest.hexdigest()[:16]


@functools.cache
def _is_kept() -> bool:
    """Whether machine code can be kept there. numba would keep it beside its source otherwise, for any state of this folder."""
    try:
        machine_code().mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return True


def _make_once() -> None:
    """Have another process make the kernels, where they are not there yet.

    In the process that makes them, code that several kernels share is the one that was made first; read from the folder, each
    has its own, which rounds otherwise here and there. So they are always read, and a run has the same bits as the first one.
    """
    import llvmlite.binding

    # numba keeps apart what stands in different folders
    place = hashlib.sha256(__file__.encode()).hexdigest()[:8]
    made = machine_code() / f"made-{llvmlite.binding.get_host_cpu_name()}-{place}"
    if not _is_kept() or made.exists():
        return
    say("kernels: made for this processor, once; that takes about a quarter of a minute")
    paths = os.pathsep.join([str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])])
    modules = ", ".join(f"{__package__}.kernels.{name}" for name in ("passes", "forest"))
    command = [sys.executable, "-c", f"import {modules}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(
            (done.stderr.strip().splitlines() or ["the process that makes them ended without a word"])[-1]
        )
    try:
        made.touch()
    except OSError as error:
        say(f"kernels: {made} cannot be written, so they are made again next time ({error})")


def kernel(*arguments: Any) -> Callable[[Callable[..., Any]], Any]:
    """A function of C that returns nothing, for `launch`.

    Args:
        arguments: numba's types of what it is given.
    """

    def compiled(function: Callable[..., Any]) -> Any:
        signature = numba().types.void(*arguments)
        try:
            return numba().cfunc(signature, cache=_is_kept())(function)
        except Exception:  # the disk is full, what lies there is no machine code
            return numba().cfunc(signature)(function)

    return compiled


def launch(kernel: Any, arguments: np.ndarray[Any, Any]) -> None:
    """Run a kernel on torch's threads.

    Args:
        arguments: one record, whose address each thread gets.
    """
    run_on_threads(kernel.address, arguments.ctypes.data, torch.get_num_threads())


def _works() -> bool:
    """Whether a small attention comes out as torch's does: with integers of another size in its product, say, it would not.

    All kernels are made here, or read as they were made once, so that no step waits for one.
    """
    from luthier.scoring.compiled import forest
    from luthier.scoring.compiled.kernels import passes  # noqa: F401

    # the question may come from within a trace on tensors without values, or under autocast
    with _disable_current_modes(), torch.autocast("cpu", enabled=False), torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        query, key, value = (
            torch.randn(1, heads, 5, 4, generator=generator, dtype=torch.float32, device="cpu") for heads in (2, 1, 1)
        )
        output, _ = forest.attend(query, key, value, (1, 0, 5, -1), 0.5)
        expected = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=0.5, enable_gqa=True
        )
        return torch.allclose(output.transpose(1, 2), expected, atol=1e-5)
