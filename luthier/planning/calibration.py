"""How long a traced batch takes: here by timing its own operations, elsewhere from a device's published figures.

A model's layers repeat, so a batch of ten thousand operations is some eighty different ones. Each is run alone, on
tensors of its own shapes, a few times; what five seconds do not reach is reckoned from the rates of what was reached.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from luthier.planning.tracker import Operation, Shape, shapes_in

SECONDS = 5.0
SECONDS_OF_ONE = 0.15  # of timing one operation
LARGEST_BYTES = 1024**3  # of an operation that is run
LARGEST_SECONDS = 0.5
SECONDS_PER_CALL = 5e-6  # Python and autograd around a small operation
GUESS = (100e9, 8e9)  # a laptop's float operations and bytes in a second: only orders what is timed first


@dataclass(frozen=True, slots=True)
class Rates:
    """A device's speed.

    Args:
        flops_per_second: in matrix products of 16 bits. float32_flops: in those of float32.
        bytes_per_second: in operations that compute little. seconds_per_call: of an operation that does nothing.
        timed: seconds of operations that were run here, by `operation_key`.
        share: of the traced work that was run, 0 to 1; 0 where all of it is reckoned from published figures.
    """

    flops_per_second: float
    float32_flops: float
    bytes_per_second: float
    seconds_per_call: float
    timed: dict[Any, float] = field(default_factory=dict)
    share: float = 0.0

    def seconds(self, operations: Sequence[Operation]) -> float:
        """How long a batch takes."""
        return sum(operation.calls * self.of_one(operation) for operation in operations)

    def of_one(self, operation: Operation) -> float:
        """How long one call takes."""
        found = self.timed.get(operation_key(operation))
        return found if found is not None else self.reckoned(operation)

    def reckoned(self, operation: Operation) -> float:
        """How long one call takes, from its arithmetic or its bytes, whichever takes longer."""
        narrow = any(shape.dtype.itemsize == 2 for shape in shapes_in(operation.arguments))
        products = self.flops_per_second if narrow else self.float32_flops
        return self.seconds_per_call + max(operation.flops / products, operation.bytes / self.bytes_per_second)


def operation_key(operation: Operation) -> Any:
    """What operations that take equally long have in common."""
    return operation.function, repr(operation.arguments), repr(operation.named)


def calibrate(operations: Sequence[Operation], seconds: float = SECONDS) -> Rates:
    """Time the operations of traced batches on this machine's processor, those with the most work first."""
    started = time.perf_counter()
    guess = Rates(GUESS[0], *GUESS, SECONDS_PER_CALL)
    ordered = sorted(operations, key=lambda operation: -operation.calls * guess.reckoned(operation))
    timed: dict[Any, float] = {}
    reached: list[Operation] = []
    with torch.no_grad():
        for operation in ordered:
            if time.perf_counter() - started > seconds:
                break
            if operation.bytes > LARGEST_BYTES or operation_key(operation) in timed:
                continue
            found = _time_one(operation)
            if found is not None:
                timed[operation_key(operation)] = found
                reached.append(operation)
        products = _product_rate(reached, timed)
        streams = _stream_rate(reached, timed)
    rates = Rates(products, products, streams, SECONDS_PER_CALL, timed)
    whole = rates.seconds(operations)
    known = sum(operation.calls * timed[operation_key(operation)] for operation in reached)
    return replace(rates, share=min(1.0, known / whole) if whole else 0.0)


def _time_one(operation: Operation) -> float | None:
    """Seconds of one call, the median of several; None where it can't be run alone."""
    try:
        arguments, named = _real(operation.arguments), {name: _real(value) for name, value in operation.named}
        started = time.perf_counter()
        operation.function(*arguments, **named)
        once = time.perf_counter() - started
        runs: list[float] = []
        deadline = time.perf_counter() + SECONDS_OF_ONE
        while len(runs) < 3 or (time.perf_counter() < deadline and len(runs) < 50):
            started = time.perf_counter()
            operation.function(*arguments, **named)
            runs.append(time.perf_counter() - started)
            if once > LARGEST_SECONDS:
                break
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None  # values that make no sense for it, or an argument that only lives in a whole pass
    return sorted(runs)[len(runs) // 2]


def _real(value: Any) -> Any:
    if isinstance(value, Shape):
        return _filled(value)
    if isinstance(value, tuple):
        return [_real(part) for part in value]
    return value


def _filled(shape: Shape) -> Tensor:
    """A tensor of a shape: numbers near one, or the index 0, which every table has."""
    reach = 1 + sum((size - 1) * step for size, step in zip(shape.size, shape.stride, strict=True) if size)
    if shape.dtype.is_floating_point:
        whole = torch.empty(reach, dtype=torch.float32).uniform_(0.5, 1.0).to(shape.dtype)
    else:
        whole = (
            torch.ones(reach, dtype=shape.dtype) if shape.dtype == torch.bool else torch.zeros(reach, dtype=shape.dtype)
        )
    return whole.as_strided(shape.size, shape.stride)


def _product_rate(reached: Sequence[Operation], timed: dict[Any, float]) -> float:
    products = [operation for operation in reached if operation.flops > 1e6]
    flops = sum(operation.calls * operation.flops for operation in products)
    seconds = sum(operation.calls * timed[operation_key(operation)] for operation in products)
    return flops / seconds if seconds else GUESS[0]


def _stream_rate(reached: Sequence[Operation], timed: dict[Any, float]) -> float:
    streams = [operation for operation in reached if not operation.flops and operation.bytes > 1e5]
    moved = sum(operation.calls * operation.bytes for operation in streams)
    seconds = sum(operation.calls * timed[operation_key(operation)] for operation in streams)
    return moved / seconds if seconds else GUESS[1]
