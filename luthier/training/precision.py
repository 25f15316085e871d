"""What a precision costs on this device."""

from __future__ import annotations

from collections.abc import Callable

import torch

from luthier.config.schema import RunConfig
from luthier.foundation.devices import fast_precisions, matmul_gflops


def warn_of_slow_precision(config: RunConfig, device: torch.device, say: Callable[[str], None]) -> None:
    """Say what a precision costs that this device can't do fast, measured now."""
    training = config.training
    if training.tf32 is not None and device.type != "cuda":
        say("training.tf32 has no effect here: it is a switch of CUDA devices.")
    products = config.model.quantization.compute_dtype if config.model.quantization is not None else None
    wanted = {
        "bfloat16": training.bf16 or training.pure_bf16 or "bfloat16" in (config.model.dtype, products),
        "float16": training.fp16 or "float16" in (config.model.dtype, products),
    }
    for name, asked in wanted.items():
        if asked and name not in fast_precisions(device):
            slow, fast = matmul_gflops(name, device), matmul_gflops("float32", device)
            if fast < 1.2 * slow:
                continue
            say(
                f"warning: this device has no {name} units: matrix products run at {slow:.1f} GFLOP/s instead of {fast:.0f} in "
                f"float32, {fast / slow:.0f} times slower. Leave training.bf16, fp16, pure_bf16, model.dtype and compute_dtype unset here."
            )
