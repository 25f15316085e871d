"""How long a traced batch takes: here by timing its own operations, elsewhere from a device's published figures.

A model's layers repeat, so a batch of ten thousand operations is some eighty different ones. Each is run alone, on
tensors of its own shapes, a few times; what five seconds do not reach is reckoned from the rates of what was reached.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from luthier.planning.grouped import even_offsets, is_grouped
from luthier.planning.tracker import Operation, Shape, shapes_in

SECONDS = 5.0
SECONDS_OF_ONE = 0.15  # of timing one operation
LARGEST_BYTES = 1024**3  # of an operation that is run
LARGEST_SECONDS = 0.5
CACHE_BYTES = 64 * 1024**2  # more than a core's own cache
MOST_SETS, MOST_RUNS = 16, 50
IN_A_STEP = 1.12  # an operation among others takes so many times what it takes alone: measured with two threads, see docs/plan.md
AROUND = 10  # a call in a model takes so many times what a bare one does with autograd; measured on smollm2-135m
GUESS = (100e9, 8e9)  # a laptop's float operations and bytes in a second: only orders what is timed first


@dataclass(frozen=True, slots=True)
class Rates:
    """A device's speed.

    Args:
        flops_per_second: in matrix products of 16 bits. float32_flops: in those of float32.
        bytes_per_second: in operations that compute little.
        seconds_per_call: of Python and autograd around an operation. waits: whether the device computes nothing meanwhile,
            as a processor does; a GPU works on what it was told before.
        timed: seconds of operations that were run here, by `operation_key`.
        share: of the traced work that was run, 0 to 1; 0 where all of it is reckoned from published figures.
        in_a_step: how many times longer an operation takes among others than alone.
    """

    flops_per_second: float
    float32_flops: float
    bytes_per_second: float
    seconds_per_call: float
    waits: bool = True
    timed: dict[Any, float] = field(default_factory=dict)
    share: float = 0.0
    in_a_step: float = 1.0

    def seconds(self, operations: Sequence[Operation]) -> float:
        """How long a batch takes."""
        computing = self.in_a_step * sum(operation.calls * self.of_one(operation) for operation in operations)
        around = self.seconds_per_call * sum(operation.calls for operation in operations)
        return computing + around if self.waits else max(computing, around)

    def of_one(self, operation: Operation) -> float:
        """How long one call computes."""
        found = self.timed.get(operation_key(operation))
        return found if found is not None else self.reckoned(operation)

    def reckoned(self, operation: Operation) -> float:
        """How long one call computes, from its arithmetic or its bytes, whichever takes longer."""
        narrow = any(shape.dtype.itemsize == 2 for shape in shapes_in(operation.arguments))
        products = self.flops_per_second if narrow else self.float32_flops
        return max(operation.flops / products, operation.bytes / self.bytes_per_second)


def operation_key(operation: Operation) -> Any:
    """What operations that take equally long have in common."""
    return operation.function, repr(operation.arguments), repr(operation.named)


def calibrate(operations: Sequence[Operation], seconds: float = SECONDS) -> Rates:
    """Time the operations of traced batches on this machine's processor, those with the most work first."""
    started = time.perf_counter()
    guess = Rates(GUESS[0], *GUESS, 0.0)
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
    rates = Rates(products, products, streams, AROUND * _bare_call(), timed=timed, in_a_step=IN_A_STEP)
    whole = rates.seconds(operations)
    known = IN_A_STEP * sum(operation.calls * timed[operation_key(operation)] for operation in reached)
    return replace(rates, share=min(1.0, known / whole) if whole else 0.0)


def _bare_call() -> float:
    """Seconds of a product of a few numbers, forward and backward."""
    left, right = torch.ones(8, 8, requires_grad=True), torch.ones(8, 8)
    runs = []
    with torch.enable_grad():
        for _ in range(40):
            started = time.perf_counter()
            result = left
            for _ in range(30):
                result = result * right
            result.sum().backward()
            runs.append((time.perf_counter() - started) / 60)
    return sorted(runs)[len(runs) // 2]


def _time_one(operation: Operation) -> float | None:
    """Seconds of one call, the median of several; None where it can't be run alone.

    In a step an operation meets other weights and other activations at every call. So it is given several sets of
    tensors in turn, more than a core's own cache holds, and its last results are kept a while.
    """
    sets = min(MOST_SETS, max(1, CACHE_BYTES // max(operation.bytes, 1)))
    try:
        given = [_arguments(operation) for _ in range(sets)]
        results: deque[Any] = deque(maxlen=sets)
        runs: list[float] = []
        deadline = time.perf_counter() + SECONDS_OF_ONE
        while len(runs) < 3 or (time.perf_counter() < deadline and len(runs) < MOST_RUNS):
            arguments, named = given[len(runs) % sets]
            started = time.perf_counter()
            result = operation.function(*arguments, **named)
            runs.append(time.perf_counter() - started)
            results.append(result)
            if runs[0] > LARGEST_SECONDS:
                return runs[0]
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None  # values that make no sense for it, or an argument that only lives in a whole pass
    return sorted(runs[1:])[(len(runs) - 1) // 2]


def _arguments(operation: Operation) -> tuple[list[Any], dict[str, Any]]:
    arguments, named = _real(operation.arguments), {name: _real(value) for name, value in operation.named}
    if is_grouped(operation.function):
        left, right, offsets = (
            arguments[0],
            arguments[1],
            named.get("offs", arguments[2] if len(arguments) > 2 else None),
        )
        if isinstance(offsets, Tensor):  # noughts would end every group before it begins
            offsets.copy_(even_offsets(left, right, len(offsets)))
    return arguments, named


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
