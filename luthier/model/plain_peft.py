"""peft without bitsandbytes, for models that have no quantized layer.

peft imports it wherever it is installed, when it is imported itself and again with the first LoRA: a second of a
processor's time and 45 MB of memory (bitsandbytes 0.50.2, whose operations import torch's compiler).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LIBRARY = "bitsandbytes"


@contextmanager
def without_bitsandbytes(quantized: bool = False) -> Iterator[None]:
    """While this lasts, peft finds no bitsandbytes; what it remembers of that is forgotten afterwards.

    Args:
        quantized: the model has quantized layers, so that nothing is hidden.
    """
    if quantized or LIBRARY in sys.modules:
        yield
        return
    from transformers.utils import is_bitsandbytes_available

    is_bitsandbytes_available()  # remembers its answer for good, so it must be asked before
    modules: dict[str, Any] = sys.modules
    modules[LIBRARY] = None  # the import system's way to say that there is no such module
    try:
        yield
    finally:
        del modules[LIBRARY]
        asked = modules.get("peft.import_utils")
        for ask in (asked.is_bnb_available, asked.is_bnb_4bit_available) if asked else ():
            ask.cache_clear()


def import_peft() -> None:
    """Import peft, so that no later import of it, ours or transformers', brings bitsandbytes."""
    with without_bitsandbytes():
        import peft  # noqa: F401
