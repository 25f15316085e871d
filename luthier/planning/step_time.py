"""How long a step takes: its batches' operations, the update where the states are, and what goes over links."""

from __future__ import annotations

from collections.abc import Sequence

from luthier.planning.calibration import Rates, calibrate
from luthier.planning.hardware import Hardware
from luthier.planning.step_trace import StepTrace
from luthier.planning.strategies import Strategy, from_and_to_host, linked, updated
from luthier.planning.subject import TracedModel
from luthier.planning.tracker import Operation

GPU_PRODUCTS, GPU_STREAMS = 0.5, 0.7  # shares of the data sheets' peaks that training reaches; not measured here
GPU_SECONDS_PER_CALL = 20e-6  # Python and autograd around an operation, as on a processor
HOST_LINK = 64e9  # both directions of 16 lanes of PCI Express 4; a card with less has its own in the table
HOST_BYTES_PER_SECOND = 50e9  # what Adam reaches in a host's memory, all threads together; assumed, not measured here


def rates_of(hardware: Hardware, operations: Sequence[Operation]) -> Rates:
    """A device's speed: timed on this machine's processor, elsewhere from data sheets."""
    device = hardware.device
    if hardware.is_this_machine and device.kind == "cpu":
        return calibrate(operations)
    return Rates(
        flops_per_second=(device.flops_per_second or 50e12) * GPU_PRODUCTS,
        float32_flops=(device.float32_flops or 10e12) * GPU_PRODUCTS,
        bytes_per_second=(device.bytes_per_second or 500e9) * GPU_STREAMS,
        seconds_per_call=GPU_SECONDS_PER_CALL,
        waits=False,
    )


def step_seconds(
    hardware: Hardware, strategy: Strategy, model: TracedModel, trace: StepTrace, rates: Rates, batches: int
) -> float:
    """An optimizer step of so many batches on each device."""
    return (
        batches * rates.seconds(trace.operations)
        + _update_seconds(hardware, strategy, model, trace, rates)
        + _link_seconds(hardware, strategy, model, trace, batches)
    )


def _update_seconds(
    hardware: Hardware, strategy: Strategy, model: TracedModel, trace: StepTrace, rates: Rates
) -> float:
    moved = updated(
        strategy,
        hardware.count,
        trained=model.trained_bytes,
        states=model.optimizer_bytes,
        gradients=trace.gradients,
    )
    on_host = strategy.offloads and hardware.device.kind != "cpu"
    return moved / (HOST_BYTES_PER_SECOND if on_host else rates.bytes_per_second)


def _link_seconds(hardware: Hardware, strategy: Strategy, model: TracedModel, trace: StepTrace, batches: int) -> float:
    """What goes between devices in a step, and between each and the host, at half the link's two-way rate; computing
    meanwhile is not reckoned with."""
    link = hardware.device.link_bytes_per_second
    sizes = {"batches": batches, "weights": model.weight_bytes, "gradients": trace.gradients}
    sent = linked(strategy, hardware.count, trained=model.trained_bytes, **sizes)
    seconds = sent / (link / 2) if link else 0.0
    if hardware.device.kind != "cpu":
        seconds += from_and_to_host(strategy, hardware.count, **sizes) / (min(link or HOST_LINK, HOST_LINK) / 2)
    return seconds
