"""One batch's forward and backward pass, run without weights and without arithmetic: what it holds, and what it computes.

torch's fake tensors have shapes, strides and precisions, but no values. So the very code that trains, Scorer, method and
stage, runs on them in moments, whatever the model's size, and every tensor that it makes is seen to come and go. What
is saved for backward need not be known here: a new model family, a fused function or a shared prefix changes the
figures by being run.

What stays unseen: memory that a kernel takes and gives back within one operation.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from luthier.data.batch import Batch
from luthier.planning.heap import Heap
from luthier.scoring.scorer import Scorer, transformers_model
from luthier.training.stage import Stage

DEVICE = torch.device("cpu")  # the fake tensors': its kernels of attention save what those of a GPU save
ATEN = torch.ops.aten
FREE = frozenset({torch.ops.prim.device.default, ATEN.detach.default, ATEN._unsafe_view.default})
READ_OUT = frozenset({ATEN._local_scalar_dense.default, ATEN.equal.default})


class UntraceableError(RuntimeError):
    """A pass that asks for values, which fake tensors do not have, or that meets an operation without a shape rule."""


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


@dataclass
class StepTrace:
    """What one batch takes, in bytes, beyond weights and optimizer states.

    Args:
        saved: tensors that the forward pass left for backward.
        head: the head's largest working memory beyond what the layers had saved.
        peak: the largest sum of activations and gradients at one moment.
        gradients_at_peak: how much of `peak` are gradients of trained weights.
        gradients: of all trained weights, at the end.
        moment: "forward", "head" or "backward": when the peak is.
        route: segmented or padded.
        operations: what is computed.
    """

    saved: int
    head: int
    peak: int
    gradients_at_peak: int
    gradients: int
    moment: str
    route: str
    operations: list[Operation] = field(repr=False, default_factory=list)

    @property
    def flops(self) -> int:
        """Floating point operations of the matrix products and attention."""
        return sum(operation.flops * operation.calls for operation in self.operations)


def trace_batch(
    scorer: Scorer,
    stage: Stage,
    batch: Batch,
    *,
    autocast: torch.dtype | None = None,
    further: bool = False,
    heap: Heap | None = None,
) -> StepTrace:
    """Run one batch on fake tensors.

    Args:
        scorer: its weights must be fake (`fake_weights`).
        autocast: precision of the forward pass, as the engine has it.
        further: gradients of an earlier batch of the same step are there.
        heap: takes memory for every tensor of the pass.

    Raises:
        UntraceableError: the pass needs values.
    """
    mode = mode_of(scorer)
    equal_rows = len({segment.end - segment.start for segment in batch.segments}) == 1
    tracker = _Tracker(equal_rows, heap)
    parameters = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    ours = _fake_batch(batch, mode)
    denominator = max(stage.denominator(batch), 1.0)
    try:
        with _counted_gradients(parameters, tracker), _trunk_end(scorer, tracker), mode, tracker:
            tracker.hold([*scorer.parameters(), *scorer.buffers(), *_tensors_of(ours)])
            if further:
                for parameter in parameters:
                    parameter.grad = torch.empty_like(parameter)
                tracker.gradients_before = sum(parameter.nbytes for parameter in parameters)
            base = tracker.start()
            loss = _forward(scorer, stage, ours, denominator, autocast)
            saved = tracker.live - base
            tracker.moment = "backward"
            loss.backward()
            del loss
        gradients = sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)
    except (NotImplementedError, RuntimeError) as error:
        raise UntraceableError(f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}") from error
    finally:
        for parameter in parameters:
            parameter.grad = None
    return StepTrace(
        saved=saved,
        head=max(0, tracker.peaks.get("head", 0) - tracker.at_trunk_end),
        peak=tracker.peak - base + tracker.gradients_before,
        gradients_at_peak=tracker.gradients_before or tracker.gradients_at_peak,
        gradients=gradients,
        moment=tracker.moment_of_peak,
        route=scorer.route,
        operations=list(tracker.operations.values()),
    )


def _forward(scorer: Scorer, stage: Stage, batch: Batch, denominator: float, autocast: torch.dtype | None) -> Tensor:
    """The loss of a batch, as the training loop makes it."""
    scorer.train()
    with torch.autocast("cpu", dtype=autocast, enabled=autocast is not None):
        scores = scorer(batch, stage.readout)
        loss = stage.loss(scores, batch)
    if scores.auxiliary_loss is not None:
        loss = loss + denominator * scores.auxiliary_loss
    return loss / denominator


def fake_weights(model: nn.Module, dtype_of: Callable[[nn.Parameter], torch.dtype]) -> FakeTensorMode:
    """Put fake tensors in the place of a skeleton's weights and buffers; ties are kept.

    Args:
        dtype_of: the precision that a weight will have in training.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    made: dict[int, Tensor] = {}
    for module in model.modules():
        for name, parameter in list(module._parameters.items()):
            if parameter is not None:
                if id(parameter) not in made:
                    fake = _fake(parameter, mode, dtype_of(parameter))
                    made[id(parameter)] = nn.Parameter(fake, requires_grad=parameter.requires_grad)
                module._parameters[name] = made[id(parameter)]  # type: ignore[assignment]
        for name, buffer in list(module._buffers.items()):
            if buffer is not None:
                made.setdefault(id(buffer), _fake(buffer, mode, buffer.dtype))
                module._buffers[name] = made[id(buffer)]
    return mode


def mode_of(model: nn.Module) -> FakeTensorMode:
    """The mode that a model's fake weights belong to."""
    first = next(model.parameters()).data
    assert isinstance(first, FakeTensor), "the model's weights are not fake"
    return first.fake_mode


def _fake(tensor: Tensor, mode: FakeTensorMode, dtype: torch.dtype) -> FakeTensor:
    bare = torch.empty_strided(tensor.shape, tensor.stride(), dtype=dtype, device="meta")
    return FakeTensor(mode, bare, DEVICE)


def _fake_batch(batch: Batch, mode: FakeTensorMode) -> Batch:
    tensors = {
        item.name: _fake(value, mode, value.dtype)
        for item in fields(batch)
        if isinstance(value := getattr(batch, item.name), Tensor)
    }
    extras = {name: _fake(value, mode, value.dtype) for name, value in batch.extras.items()}
    return replace(batch, **tensors, extras=extras)  # type: ignore[arg-type]


def _tensors_of(batch: Batch) -> list[Tensor]:
    return [value for item in fields(batch) if isinstance(value := getattr(batch, item.name), Tensor)]


@contextmanager
def _counted_gradients(parameters: list[nn.Parameter], tracker: _Tracker) -> Iterator[None]:
    """Tell the tracker of each gradient that has come to stay."""
    counted: set[int] = set()

    def note(parameter: Tensor) -> None:
        if id(parameter) not in counted and parameter.grad is not None:
            counted.add(id(parameter))
            tracker.gradients += parameter.grad.nbytes

    handles = [parameter.register_post_accumulate_grad_hook(note) for parameter in parameters]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _trunk_end(scorer: Scorer, tracker: _Tracker) -> Iterator[None]:
    """Tell the tracker when the layers are done and the head begins."""
    trunk: Any = transformers_model(scorer.model).get_decoder()

    def note(*_: Any) -> None:
        if tracker.moment == "forward":
            tracker.at_trunk_end = tracker.live
            tracker.moment = "head"

    handle = trunk.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()


class _Tracker(TorchDispatchMode):
    """Sees every operation: which storages live, and what is computed.

    Args:
        heap: takes memory for every tensor, if given.
        answer: what a question about values is told. Models ask whether a mask hides nothing, so: whether all rows are
            equally long.
    """

    def __init__(self, answer: bool, heap: Heap | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.answer = answer
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
        if func in READ_OUT:
            return self.answer
        result = func(*args, **(kwargs or {}))
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        for output in outputs:
            if isinstance(output, Tensor):
                self._see(output)
        if func not in FREE and not func.is_view:
            self._count(func, args, kwargs or {}, outputs)
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
            shape_rule = flop_registry.get(func._overloadpacket)
            flops = (
                int(shape_rule(*args, **kwargs, out_val=outputs[0] if len(outputs) == 1 else outputs))
                if shape_rule
                else 0
            )
            moved = sum(shape.bytes for shape in shapes_in((arguments, tuple(value for _, value in named))))
            moved += sum(output.nbytes for output in outputs if isinstance(output, Tensor))
            operation = self.operations[key] = Operation(func, arguments, named, flops, moved)
        operation.calls += 1


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
