"""Watches the operations of a traced pass: which tensors live, and what is computed."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from luthier.planning.grouped import GROUPED_MM, grouped_flops, grouped_result, is_grouped
from luthier.planning.heap import Heap
from luthier.planning.known_values import READ_OUT, KnownValues

ATEN = torch.ops.aten
DEVICE_OF = torch.ops.prim.device.default
FREE = frozenset({ATEN.detach.default, ATEN._unsafe_view.default})


class Shape(NamedTuple):
    """A tensor as an argument of an operation."""

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @property
    def bytes(self) -> int:
        """Bytes of the elements that are read; an expanded dimension is one element."""
        count = 1
        for length, step in zip(self.size, self.stride, strict=True):
            count *= length if step else 1
        return count * self.dtype.itemsize


@dataclass(slots=True)
class Operation:
    """Calls of one operation with arguments of the same shapes.

    Args:
        function: torch's operator. arguments, named: its arguments, tensors as `Shape`.
        flops: of one call. bytes: read and written by one call.
        calls: how many there are in the batch.
    """

    function: Any
    arguments: tuple[Any, ...]
    named: tuple[tuple[str, Any], ...]
    flops: int
    bytes: int
    calls: int = 0


class Tracker(TorchDispatchMode):
    """Sees every operation: which storages live, and what is computed.

    Args:
        values: those that are known in spite of all. heap: takes memory for every tensor, if given.
    """

    def __init__(self, values: KnownValues, heap: Heap | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = values
        self.heap: Heap | None = None
        self._heap_when_started = heap
        self.live = self.peak = self.gradients = self.gradients_at_peak = self.gradients_before = 0
        self.at_trunk_end = 0
        self.moment = self.moment_of_peak = "forward"
        self.peaks: dict[str, int] = {}
        self.operations: dict[Any, Operation] = {}
        self._known: dict[int, weakref.ref[Any]] = {}

    def start(self) -> int:
        """What is held now is no activation; returns its bytes."""
        self.peak, self.peaks = self.live, {}
        self.heap = self._heap_when_started
        return self.live

    def hold(self, tensors: list[Tensor]) -> None:
        """Count tensors that were made before."""
        for tensor in tensors:
            self._see(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is DEVICE_OF:  # asked at every turn, and half of all time if it were handed on
            return args[0].fake_device if isinstance(args[0], FakeTensor) else func(*args)
        kwargs = kwargs or {}
        if func in READ_OUT:
            return self.values.read_out(func, args)
        result: Any
        if func is GROUPED_MM and isinstance(args[0], FakeTensor):
            offsets = kwargs.get("offs", args[2] if len(args) > 2 else None)
            result = grouped_result(args[0], args[1], len(args[0]) if offsets is None else len(offsets))
        else:
            result = self.values.call(func, args, kwargs)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        for output in outputs:
            if isinstance(output, Tensor):
                self._see(output)
        if func not in FREE and not func.is_view:
            self._count(func, args, kwargs, outputs)
        return result

    def _see(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key = id(storage)
        if key in self._known:
            return
        size = storage.nbytes()
        give_back = self.heap.hold(size) if self.heap is not None and size else None

        def gone(_: Any) -> None:
            del self._known[key]
            self.live -= size
            if give_back is not None:
                give_back()

        self._known[key] = weakref.ref(storage, gone)
        self.live += size
        self.peaks[self.moment] = max(self.peaks.get(self.moment, 0), self.live)
        if self.live > self.peak:
            self.peak, self.moment_of_peak, self.gradients_at_peak = self.live, self.moment, self.gradients

    def _count(self, func: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> None:
        arguments, named = _shapes(args), tuple((name, _shapes(value)) for name, value in kwargs.items())
        key: Any = (func, arguments, named)
        try:
            operation = self.operations.get(key)
        except TypeError:  # an argument that can't be hashed: counted by its text
            key = (func, repr(arguments), repr(named))
            operation = self.operations.get(key)
        if operation is None:
            flops = _flops(func, args, kwargs, outputs)
            moved = sum(shape.bytes for shape in shapes_in((arguments, tuple(value for _, value in named))))
            moved += sum(output.nbytes for output in outputs if isinstance(output, Tensor))
            operation = self.operations[key] = Operation(func, arguments, named, flops, moved)
        operation.calls += 1


def _flops(func: Any, args: Any, kwargs: dict[str, Any], outputs: Any) -> int:
    if is_grouped(func):
        return grouped_flops(func, args[0], args[1])
    rule = flop_registry.get(func._overloadpacket)
    return int(rule(*args, **kwargs, out_val=outputs[0] if len(outputs) == 1 else outputs)) if rule else 0


def _shapes(value: Any) -> Any:
    if isinstance(value, Tensor):
        return Shape(tuple(value.shape), tuple(value.stride()), value.dtype)
    if isinstance(value, (tuple, list)):
        return tuple(_shapes(part) for part in value)
    return value


def shapes_in(value: Any) -> Iterator[Shape]:
    """The tensors among an operation's arguments."""
    if isinstance(value, Shape):
        yield value
    elif isinstance(value, tuple):
        for part in value:
            yield from shapes_in(part)
