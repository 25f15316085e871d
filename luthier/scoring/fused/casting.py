"""Precisions: weights in that of a product, for the moment that it takes, and that in which sums are kept."""

from __future__ import annotations

import threading

import torch
from torch import Tensor, nn


class _Memory(threading.local):
    """One piece for each precision and thread, as large as the largest weight so far."""

    def __init__(self) -> None:
        self.pieces: dict[torch.dtype, Tensor] = {}


_memory = _Memory()


def cast_for_product(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight that nothing learns in another precision, until the next one is asked for.

    On a CPU it stands in memory that the next weight overwrites: fresh memory costs as much as the cast, which is a
    twentieth of a step, and leaves holes among what is kept for backward. So the result may not be kept, nor two at a time.
    """
    if weight.dtype == dtype:
        return weight
    if weight.device.type != "cpu" or type(weight) not in (Tensor, nn.Parameter):  # a planner's stand-in has no memory
        return weight.to(dtype)
    piece = _memory.pieces.get(dtype)
    if piece is None or piece.numel() < weight.numel():
        with torch.inference_mode(False):
            piece = _memory.pieces[dtype] = torch.empty(weight.numel(), dtype=dtype)
    return piece[: weight.numel()].view(weight.shape).copy_(weight.detach())


def summed_in(values: Tensor) -> torch.dtype:
    """Sums of 16-bit values are kept in float32, of others in their own precision."""
    return torch.promote_types(values.dtype, torch.float32)
