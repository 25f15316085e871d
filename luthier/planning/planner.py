"""What a run will take: `plan` puts the parts together, `Planner` keeps what several plans of one run have in common."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.config.schema import RunConfig
from luthier.data.batch import Batch
from luthier.foundation.devices import resident_bytes
from luthier.foundation.files import human_bytes
from luthier.planning.hardware import Device, Hardware, this_machine
from luthier.planning.heap import heap_here
from luthier.planning.rows import Batches, TrunkStandIn, batch_tokens
from luthier.planning.step_time import rates_of, step_seconds
from luthier.planning.step_trace import StepTrace, UntraceableError, trace_batch
from luthier.planning.strategies import Shares, Strategy, find_strategy, shares
from luthier.planning.subject import PreparedRun, Subject, TracedModel, autocast_dtype, traced_model
from luthier.planning.taken import Disk, Memory, Time
from luthier.scoring.scorer import Scorer, transformers_model
from luthier.scoring.trunk import GOES_NOT_ON, Room, bytes_of, trunk_layer
from luthier.training.trained import update_tensors

if TYPE_CHECKING:
    from luthier.planning.batch_tokens import BatchTokens

GPU_FIXED_BYTES = 600 * 1024**2  # a CUDA context and cuBLAS's workspaces; not measured here
GPU_HOLES = 0.06  # what torch's caching allocator rounds up and can't reuse; not measured here
CPU_WORK_BYTES = (
    48 * 1024**2
)  # what a process gains with its first steps: buffers of MKL and oneDNN, the loss plot's library
CPU_FIXED_BYTES = 500 * 1024**2  # Python with torch, transformers and peft


@dataclass
class Plan:
    """What a run will take on some hardware.

    Args:
        route: segmented or padded. batch_tokens: of the longest batch.
        shared: the share of the tokens that is not computed, since the examples of a batch begin alike.
        trunk_layer: states below it are computed once and kept on disk; 0: none are.
        memory, time: None where the model can't be traced; a remark says why.
        fits: None where memory is None.
        over_budget: under training.tokens_per_batch auto the longest example takes more than may be planned with, so a
            run would be refused.
        remarks: what a person should know, one sentence each.
        merged: what training.tokens_per_batch auto comes to; None where it is not asked for, or nothing fits.
    """

    trainable_parameters: int
    total_parameters: int
    hardware: Hardware
    strategy: Strategy
    route: str
    steps: int
    steps_per_epoch: int | None
    tokens_per_step: float
    batch_tokens: int
    shared: float
    trunk_layer: int
    memory: Memory | None
    time: Time | None
    disk: Disk
    remarks: list[str] = field(default_factory=list)
    merged: BatchTokens | None = None
    over_budget: bool = False

    @property
    def ranks(self) -> int:
        """Devices that share a step."""
        return self.hardware.count

    @property
    def peak_bytes(self) -> int | None:
        """The largest memory of one device."""
        return self.memory.peak if self.memory is not None else None

    @property
    def seconds_per_step(self) -> float | None:
        """Of an optimizer step with all its batches."""
        return self.time.seconds_per_step if self.time is not None else None

    @property
    def fits(self) -> bool | None:
        """Whether one device holds it, within the budget that was given."""
        return self.held and not self.over_budget and self.fits_host is not False

    @property
    def held(self) -> bool | None:
        """Whether one device holds it, whatever the budget."""
        return self.memory.peak <= self.hardware.device.usable_bytes if self.memory is not None else None

    @property
    def host_bytes(self) -> int:
        """What all devices keep in the machine's memory."""
        if self.memory is None:
            return 0
        here = self.memory.peak if self.hardware.device.kind == "cpu" else 0  # which is the same memory
        return self.hardware.count * self.memory.host + here

    @property
    def fits_host(self) -> bool | None:
        """Whether the machine's memory holds what waits there; None where nothing does, or its size is not known."""
        if self.memory is None or not self.memory.host or not self.hardware.host_bytes:
            return None
        return self.host_bytes <= int(0.9 * self.hardware.host_bytes)

    def as_dict(self) -> dict[str, Any]:
        """Plain values; docs/plan.md describes the keys."""
        device = self.hardware.device
        return {
            "hardware": {"name": device.name, "devices": self.hardware.count, "memory_bytes": device.memory_bytes},
            "strategy": self.strategy.name,
            "runs_here": self.strategy.runs_here,
            "route": self.route,
            "longest_batch_tokens": self.batch_tokens,
            "tokens_per_batch": self.merged.as_dict() if self.merged is not None else None,
            "shared_share": round(self.shared, 4),
            "trunk_layer": self.trunk_layer,
            "fits": self.fits,
            "memory_bytes": self.memory.as_dict() if self.memory is not None else None,
            "time": asdict(self.time) if self.time is not None else None,
            "disk_bytes": asdict(self.disk),
        }


def plan(
    config: RunConfig,
    setup: PreparedRun,
    *,
    hardware: Hardware | None = None,
    strategy: str | None = None,
    with_time: bool = True,
) -> Plan:
    """What a run takes.

    Args:
        config: its settings, or others to be tried on the same data. setup: what `set_up` gave.
        hardware: where it will run; None: here.
        strategy: see `strategies`; None: single, or ddp on several devices.
        with_time: whether to time operations, which takes five seconds here.
    """
    return Planner(Subject.of(setup), hardware, strategy).plan(config, with_time=with_time)


class Planner:
    """Plans of one run under several configs.

    Args:
        hardware: None: this machine's. strategy: None: single, or ddp on several devices.
        fixed_bytes: memory that a process takes before it reads weights; None: what this one has now, where the plan is
            for this machine's processor.
    """

    def __init__(
        self,
        subject: Subject,
        hardware: Hardware | None = None,
        strategy: str | None = None,
        fixed_bytes: int | None = None,
    ) -> None:
        self.subject = subject
        self.hardware = hardware or this_machine(subject.config.training.use_cpu)
        self.strategy = find_strategy(strategy, self.hardware.count)
        if fixed_bytes is None:
            here = resident_bytes() + CPU_WORK_BYTES if self.hardware.is_this_machine else CPU_FIXED_BYTES
            fixed_bytes = here if self.device.kind == "cpu" else GPU_FIXED_BYTES
        self.fixed_bytes = fixed_bytes
        self._models: dict[str, TracedModel] = {}
        self._traces: dict[Any, StepTrace] = {}

    @property
    def device(self) -> Device:
        """One of the devices."""
        return self.hardware.device

    def plan(self, config: RunConfig | None = None, *, with_time: bool = True) -> Plan:
        """What the run takes under a config; None: its own."""
        config = config or self.subject.config
        subject = self.subject.under(config)
        model = self._model(subject)
        batches = self._batches(subject, model)
        layer, trunk_bytes, reason = self._trunk(subject, model)
        remarks = [f"trunk: {reason}"] if reason else []
        memory = time = None
        try:
            memory = self._memory(subject, model, batches)
            time = self._time(subject, model, batches) if with_time else None
        except UntraceableError as error:
            remarks.append(f"memory and time are not known: the model's step could not be traced ({error})")
        if not self.strategy.runs_here:
            remarks.append(
                f"luthier has no engine for {self.strategy.name} yet: this is what it would take, not what can be run"
            )
        if memory is not None and memory.host:
            needed = human_bytes(self.hardware.count * memory.host)
            room = self.hardware.host_bytes
            has = f"which has {human_bytes(room)}" if room else "which must have them beside what else runs there"
            remarks.append(
                f"{needed} of weights, gradients and optimizer states wait in the machine's own memory, {has}"
            )
        if self.device.kind != "cpu":
            remarks.append("figures for GPUs are reckoned: none of them has been measured on one")
        return Plan(
            trainable_parameters=model.count.trainable,
            total_parameters=model.count.total,
            hardware=self.hardware,
            strategy=self.strategy,
            route=model.scorer.route,
            steps=batches.steps,
            steps_per_epoch=batches.steps_per_epoch,
            tokens_per_step=batches.tokens_per_step,
            batch_tokens=batch_tokens(batches.longest, model.scorer),
            shared=batches.shared,
            trunk_layer=layer,
            memory=memory,
            time=time,
            disk=Disk.of(
                config.training,
                (model.saved_bytes, model.optimizer_bytes),
                batches.steps,
                batches.steps_per_epoch,
                trunk_bytes,
            ),
            remarks=remarks,
        )

    def memory(self, config: RunConfig) -> Memory:
        """What one device holds at the peak, under a config.

        Raises:
            UntraceableError: the model's step can't be traced. ModelError: its method does not fit.
        """
        subject = self.subject.under(config)
        model = self._model(subject)
        return self._memory(subject, model, self._batches(subject, model))

    def full_batch(self, config: RunConfig, tokens: int, *, alone: bool) -> int:
        """Bytes of one device at the peak of a batch of so many tokens, as laid down.

        Args:
            alone: no other batch of the step has left gradients.

        Raises:
            UntraceableError: the model's step can't be traced. ModelError: its method does not fit.
        """
        subject = self.subject.under(config)
        model = self._model(subject)
        batch = subject.rows.full(config, self.hardware.count, model.scorer, subject.stage, tokens)
        return self._memory_of(subject, model, batch, not alone).peak

    def scorer(self, config: RunConfig) -> Scorer:
        """The scorer of the run's model, on fake weights.

        Raises:
            ModelError: the method does not fit the model.
        """
        return self._model(self.subject.under(config)).scorer

    def standing(self, config: RunConfig) -> int:
        """Bytes of one device that no batch changes: weights, optimizer states and the process itself.

        Raises:
            ModelError: the method does not fit the model.
        """
        model = self._model(self.subject.under(config))
        own = self._shares(model, model.gradient_bytes)
        return own.weights + own.optimizer_states + self.fixed_bytes

    def _shares(self, model: TracedModel, gradients: int) -> Shares:
        return shares(
            self.strategy,
            self.hardware.count,
            weights=model.weight_bytes,
            states=model.optimizer_bytes,
            gradients=gradients,
            unit=model.unit_bytes,
        )

    def _model(self, subject: Subject) -> TracedModel:
        config = subject.config
        training = config.training
        parts = (
            config.model.model_dump_json(),
            config.method.model_dump_json(),
            str((training.gradient_checkpointing, training.bf16, training.fp16, training.pure_bf16)),
        )
        key = "|".join(parts)
        if key not in self._models:
            self._models[key] = traced_model(subject, self.device)
        model = self._models[key].under(training.optim)
        layer, _, _ = self._trunk(subject, model)
        inner = transformers_model(model.scorer.model)
        width, embedding = inner.config.get_text_config().hidden_size, inner.get_input_embeddings()
        model.scorer.trunk = TrunkStandIn(layer, width, embedding.weight.dtype) if layer else None
        return model

    def _trunk(self, subject: Subject, model: TracedModel) -> tuple[int, int, str]:
        """The layer below which a run keeps states, and their bytes; without them 0, 0 and why."""
        config, inner = subject.config, transformers_model(model.scorer.model)
        epochs, limit = subject.rows.epochs(config, self.hardware.count), config.training.trunk_cache_limit_gib
        longest = subject.rows.longest_sequence(config)
        layer = trunk_layer(inner, model.scorer, limit, epochs, self.hardware.count, longest)
        if not layer or not model.scorer.finding.goes_on:
            return 0, 0, GOES_NOT_ON if layer else ""
        needed = bytes_of(self._tokens_learnt, inner)
        place = Path(config.output_dir) if self.hardware.is_this_machine else None
        schedule = subject.rows.schedule_under(config, self.hardware.count)
        beside = Disk.of(
            config.training, (model.saved_bytes, model.optimizer_bytes), schedule.total_steps, schedule.steps_per_epoch
        )
        reason = Room(limit, beside.total).refusal(layer, needed, place)
        return (0, 0, reason) if reason else (layer, needed, "")

    @cached_property
    def _tokens_learnt(self) -> int:
        return self.subject.rows.tokens_learnt(self.subject.stage)

    def _batches(self, subject: Subject, model: TracedModel) -> Batches:
        return subject.rows.batches(subject.config, self.hardware.count, model.scorer, subject.stage)

    def _trace(
        self, subject: Subject, model: TracedModel, batch: Batch, further: bool, *, with_heap: bool
    ) -> StepTrace:
        """A batch's trace, with what the allocator keeps of it; to measure that takes nearly as long as the trace."""
        scorer = model.scorer
        # tokens behind the last that is read are not computed
        read = batch.source_positions_N.numel(), tuple(scorer.rows_read(batch, subject.stage.readout))
        of_batch = (id(scorer), scorer.trunk is None, batch.segments, read, further)
        key = (of_batch, with_heap or (of_batch, True) in self._traces)
        if key not in self._traces:
            heap = None
            if with_heap and self.hardware.is_this_machine and self.device.kind == "cpu":
                heap = heap_here(self.device.memory_bytes)
            trace = trace_batch(
                model.scorer,
                subject.stage,
                batch,
                autocast=autocast_dtype(subject.config),
                further=further,
                heap=heap,
            )
            if heap is not None:
                heap.settle()
            self._traces[key] = trace
        return self._traces[key]

    def _memory(self, subject: Subject, model: TracedModel, batches: Batches) -> Memory:
        return self._memory_of(subject, model, batches.longest, batches.per_step > 1)

    def _memory_of(self, subject: Subject, model: TracedModel, batch: Batch, further: bool) -> Memory:
        trace = self._trace(subject, model, batch, further, with_heap=True)
        own = self._shares(model, min(trace.gradients, model.gradient_bytes))
        # gradients that backward has made by the moment of the peak; shared out as they come
        share = own.gradients / trace.gradients if trace.gradients else 1.0
        gradients = int(trace.gradients_at_peak * share)
        activations = trace.peak - trace.gradients_at_peak
        head = min(trace.head, activations) if trace.moment == "head" else 0
        update = self._update_tensors(subject, model)
        if trace.kept is not None:
            kept = max(0, trace.kept.growth - trace.peak)
            working = trace.kept.update_beyond(update, trace.gradients)
        else:
            holes = GPU_HOLES if self.device.kind == "cuda" else 0.0
            kept, working = int(holes * (activations + gradients)), 0
            if gradients + activations < own.gradients + sum(update):
                # the update is the peak: all gradients, and in the place of activations what the optimizer works with
                gradients, activations, head, working = own.gradients, 0, 0, sum(update)
                kept = int(holes * (gradients + working))
        return Memory(
            weights=own.weights,
            optimizer_states=own.optimizer_states,
            gradients=gradients,
            activations=activations - head,
            head=head,
            update=working,
            gathered=own.gathered,
            allocator=kept,
            fixed=self.fixed_bytes,
            saved=trace.saved,
            all_gradients=own.gradients,
            host=own.host,
        )

    def _update_tensors(self, subject: Subject, model: TracedModel) -> list[int]:
        """What the optimizer works with on one device; an offloaded one works in the host's memory."""
        if self.strategy.offloads:
            return []
        devices = self.hardware.count if self.strategy.shards_states else 1
        found = update_tensors(subject.config.training, model.trained, self.device.kind)
        return [-(-size // devices) for size in found]

    def _time(self, subject: Subject, model: TracedModel, batches: Batches) -> Time:
        trace = self._trace(subject, model, batches.usual, False, with_heap=False)
        rates = rates_of(self.hardware, trace.operations)
        step = step_seconds(self.hardware, self.strategy, model, trace, rates, batches.per_step)
        return Time(step, step * batches.steps, batches.tokens_per_step / step, rates.share)
