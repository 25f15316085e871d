"""One batch's forward and backward pass, run without weights and without arithmetic: what it holds, and what it computes.

torch's fake tensors have shapes, strides and precisions, but no values. So the very code that trains, Scorer, method and
stage, runs on them in moments, whatever the model's size, and every tensor that it makes is seen to come and go. What
is saved for backward need not be known here: a new model family, a fused function or a shared prefix changes the
figures by being run.

What stays unseen: memory that a kernel takes and gives back within one operation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from luthier.data.batch import Batch
from luthier.planning.heap import Heap, Kept
from luthier.planning.known_values import KnownValues
from luthier.planning.tracker import Operation, Tracker
from luthier.scoring.backbone import backbone_of
from luthier.scoring.scorer import Scorer, transformers_model
from luthier.training.stage import Stage

DEVICE = torch.device("cpu")  # the fake tensors': its kernels of attention save what those of a GPU save


class UntraceableError(RuntimeError):
    """A pass that asks for values, which fake tensors do not have, or that meets an operation without a shape rule."""


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
        kept: what this machine's allocator has of it; None: unknown.
        operations: what is computed.
    """

    saved: int
    head: int
    peak: int
    gradients_at_peak: int
    gradients: int
    moment: str
    route: str
    kept: Kept | None = None
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
    values = KnownValues(mode)
    tracker = Tracker(values, heap)
    parameters = [parameter for parameter in scorer.parameters() if parameter.requires_grad]
    ours = _fake_batch(batch, mode, values)
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
        largest = max((parameter.nbytes for parameter in parameters), default=0)
        kept = heap.kept(largest) if heap is not None and heap.complete else None
        if kept is not None and further:
            kept = kept.beside([parameter.nbytes for parameter in parameters])
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
        kept=kept,
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


def _fake_batch(batch: Batch, mode: FakeTensorMode, values: KnownValues) -> Batch:
    def fake(tensor: Tensor) -> FakeTensor:
        found = _fake(tensor, mode, tensor.dtype)
        values.know(found, tensor)
        return found

    tensors = {
        item.name: fake(value) for item in fields(batch) if isinstance(value := getattr(batch, item.name), Tensor)
    }
    return replace(batch, **tensors, extras={name: fake(value) for name, value in batch.extras.items()})  # type: ignore[arg-type]


def _tensors_of(batch: Batch) -> list[Tensor]:
    return [value for item in fields(batch) if isinstance(value := getattr(batch, item.name), Tensor)]


@contextmanager
def _counted_gradients(parameters: list[nn.Parameter], tracker: Tracker) -> Iterator[None]:
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
def _trunk_end(scorer: Scorer, tracker: Tracker) -> Iterator[None]:
    """Tell the tracker when the layers are done and the head begins."""
    trunk: Any = backbone_of(transformers_model(scorer.model))

    def note(*_: Any) -> None:
        if tracker.moment == "forward":
            tracker.at_trunk_end = tracker.live
            tracker.moment = "head"

    handle = trunk.register_forward_hook(note)
    try:
        yield
    finally:
        handle.remove()
