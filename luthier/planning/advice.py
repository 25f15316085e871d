"""What to change where a run does not fit: the smallest sacrifice that makes it fit, in the config's own words.

In this order, each also with the ones before it: smaller batches with as many examples in a step (the same gradients, a
little slower), gradient checkpointing (the same gradients, about a third slower), an optimizer that keeps less where the
model's own weights are trained, a base in 4 bits beside which an adapter learns, an adapter in place of the whole model
(with the optimizer that was asked for), shorter rows.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

from pydantic import ValidationError
from torch import nn

from luthier.config.model_section import QuantizationConfig
from luthier.config.plugins import METHODS, OPTIMIZERS
from luthier.config.schema import RunConfig
from luthier.config.training_section import TrainingConfig
from luthier.foundation.errors import MissingExtraError, ModelError, TrainingError
from luthier.foundation.files import human_bytes
from luthier.planning.planner import Planner
from luthier.planning.step_trace import UntraceableError
from luthier.planning.strategies import STRATEGIES
from luthier.training.optimization import make_optimizer

SHORTEST_CUTOFF = 64
LEAST_BATCH_TOKENS = 64  # fewer do not pay a forward pass of their own
OF_TRAINING = (
    "learning_rate", "gradient_checkpointing", "per_device_train_batch_size", "gradient_accumulation_steps",
    "tokens_per_batch", "memory_budget_gib",
)  # fmt: skip
# in docs/optimizers.md's order: nearly AdamW's path; no mean of the gradients; one layer at a time
LIGHTER_OPTIMIZERS = ("adamw8bit", "adafactor", "badam")


@dataclass(frozen=True, slots=True)
class Advice:
    """Settings to change.

    Args:
        settings: as on the command line. peak_bytes: of one device, with them. fits: whether that is enough.
        config: with the settings changed.
    """

    settings: tuple[str, ...]
    peak_bytes: int
    fits: bool
    config: RunConfig

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"settings": list(self.settings), "peak_bytes": self.peak_bytes, "fits": self.fits}


def advise(planner: Planner, config: RunConfig | None = None, *, written: RunConfig | None = None) -> Advice | None:
    """The first change that makes a run fit; the one with the smallest peak if none does; None if it fits as it is, or
    nothing can be changed.

    Args:
        config: None: the planner's. written: from which the settings are to be changed, where training.tokens_per_batch
            is auto there and a number in the config; None: the config.

    Raises:
        UntraceableError: the model's step can't be traced.
    """
    start = config or planner.subject.config
    written = written or start
    if isinstance(start.training.tokens_per_batch, int):  # a budget is for auto alone
        start = _changed(start, "training", memory_budget_gib=None)
    room = planner.device.usable_bytes
    if planner.memory(start).peak <= room:
        return None
    least: Advice | None = None
    hopeless: tuple[int, RunConfig] | None = None  # of those whose weights alone are too much the one with the least
    for variant in _variants(start, planner.subject.under(start).quantization is not None):
        try:
            standing = planner.standing(variant)
            if standing > room:
                hopeless = (standing, variant) if hopeless is None or standing <= hopeless[0] else hopeless
                continue
            found = _smallest_batch_change(planner, variant, room)
        except (
            ModelError,
            TrainingError,
            UntraceableError,
        ):  # what does not fit the model or the optimizer is no advice
            continue
        advice = Advice(_settings(written, found[0]), found[1], found[1] <= room, found[0])
        if advice.fits:
            return advice
        if found[0] != start and (least is None or advice.peak_bytes < least.peak_bytes):
            least = advice
    if least is None and hopeless is not None:
        smallest = _with_smaller_batches(hopeless[1])[-1]
        if smallest != start:
            least = Advice(_settings(written, smallest), planner.memory(smallest).peak, False, smallest)
    return least


def shared_out(planner: Planner) -> str | None:
    """Where each of several devices holds all weights, and they do not fit: that they do where they are shared out, if so."""
    strategy = STRATEGIES["fsdp"]
    if planner.hardware.count == 1 or planner.strategy.shards_weights:
        return None
    start, other = planner.subject.config, copy.copy(planner)  # which shares what was traced
    other.strategy = strategy
    for config in (start, _changed(start, "training", gradient_checkpointing=True)):
        try:
            peak = other.memory(config).peak
        except (ModelError, TrainingError, UntraceableError):
            continue
        if peak <= planner.device.usable_bytes:
            flags = " ".join((f"--strategy {strategy.name}", *_settings(start, config)))
            engine = "" if strategy.runs_here else f", but luthier has no engine for {strategy.name} yet"
            return f"with {flags} each device would hold {human_bytes(peak)}{engine}"
    return None


def _smallest_batch_change(planner: Planner, config: RunConfig, room: int) -> tuple[RunConfig, int]:
    """The largest batch that fits, or a batch of one: its config and its peak."""
    *larger, smallest = _with_smaller_batches(config)
    peak = planner.memory(smallest).peak
    if peak > room:
        return smallest, peak
    for candidate in larger:
        found = planner.memory(candidate).peak
        if found <= room:
            return candidate, found
    return smallest, peak


def _with_smaller_batches(config: RunConfig) -> list[RunConfig]:
    """The config, then with batches of halves and less, down to one row: of its tokens where those bound them, else of rows
    that a step's can be divided into."""
    tokens = config.training.tokens_per_batch
    if not isinstance(tokens, int):
        return [_with_batch(config, size) for size in _sizes(config)]
    bounds = [tokens]
    while bounds[-1] > LEAST_BATCH_TOKENS:
        bounds.append(max(bounds[-1] // 2, LEAST_BATCH_TOKENS))
    return [config, *(_changed(config, "training", tokens_per_batch=bound) for bound in bounds[1:])]


def _sizes(config: RunConfig) -> list[int]:
    """Batches from the config's own down to one row, halves or less, that a step's rows can be divided into."""
    examples = _examples(config)
    sizes = [config.training.per_device_train_batch_size]
    while sizes[-1] > 1:
        sizes.append(max(size for size in range(1, sizes[-1] // 2 + 1) if examples % size == 0))
    return sizes


def _examples(config: RunConfig) -> int:
    """Rows of a step on one device."""
    return config.training.per_device_train_batch_size * config.training.gradient_accumulation_steps


def _with_batch(config: RunConfig, size: int) -> RunConfig:
    """The config with another batch size, and as many examples in a step."""
    pieces = _examples(config) // size
    return _changed(config, "training", per_device_train_batch_size=size, gradient_accumulation_steps=pieces)


def _variants(start: RunConfig, quantized: bool) -> Iterator[RunConfig]:
    """Configs in order of sacrifice; `quantized` says that the base already is."""
    with_and_without = [start]
    if not start.training.gradient_checkpointing:
        with_and_without.append(_changed(start, "training", gradient_checkpointing=True))
    yield from with_and_without
    methods = [start.method]
    if METHODS.load(start.method.name).build(start.method).saves == "model":
        for name in LIGHTER_OPTIMIZERS:
            yield from (
                lighter for config in with_and_without if (lighter := _with_optimizer(config, name)) is not None
            )
        methods.append(METHODS.load("lora").Options(name="lora"))
    for method in methods:
        alike = [with_and_without]  # each with an optimizer of its own
        if method is not start.method:
            own = [_with_method(config, method) for config in with_and_without]
            # galore and apollo have nothing to project there
            plain = [found for config in own if (found := _with_optimizer(config, "adamw")) is not None]
            alike = [own, plain] if plain else [own]
            yield from chain.from_iterable(alike)
        if not quantized and not METHODS.load(method.name).build(method).quantized_problem():
            alike = [
                [_changed(config, "model", quantization=QuantizationConfig()) for config in variants]
                for variants in alike
            ]
            yield from chain.from_iterable(alike)
    for variants in alike:
        shorter = variants[-1]
        while (cutoff := shorter.data.cutoff_length // 2) >= SHORTEST_CUTOFF:
            shorter = _changed(shorter, "data", cutoff_length=cutoff)
            yield shorter


def _with_method(config: RunConfig, method: Any) -> RunConfig:
    """The config with another method, and a rate that was set changed as what is recommended for the two differs."""
    rate = config.training.learning_rate
    if rate is not None:
        rate = float(f"{rate * method.recommended_learning_rate / config.method.recommended_learning_rate:.3g}")
        config = _changed(config, "training", learning_rate=rate)
    return config.model_copy(update={"method": method})


def _with_optimizer(config: RunConfig, name: str) -> RunConfig | None:
    """The config with another optimizer; None where it can't take the place of the config's own.

    That is: it is the same, it is not installed, it does not go with the method, a setting of the config would not act on it,
    or the rate that was set is no rate for it.
    """
    training, options = config.training, OPTIMIZERS.load(name).Options(name=name)
    if name == training.optim.name:
        return None
    if config.method.optimizer_problem(options):
        return None
    if training.learning_rate is not None and options.learning_rate_ratio != training.optim.learning_rate_ratio:
        return None
    given = {field: getattr(training, field) for field in training.model_fields_set}
    try:
        found = config.model_copy(update={"training": TrainingConfig.model_validate({**given, "optim": options})})
        make_optimizer(found, nn.Linear(1, 1))
    except (ValidationError, MissingExtraError, TrainingError):
        return None
    return found


def _changed(config: RunConfig, section: str, **settings: Any) -> RunConfig:
    part = getattr(config, section).model_copy(update=settings)
    return config.model_copy(update={section: part})


def _settings(start: RunConfig, end: RunConfig) -> tuple[str, ...]:
    """What differs, as settings of a command line."""
    found = []
    if end.method.name != start.method.name:
        found.append(f"method={end.method.name}")
    if end.model.quantization != start.model.quantization and end.model.quantization is not None:
        found.append(f"model.quantization={end.model.quantization.type}")
    if end.training.optim.name != start.training.optim.name:
        found.append(f"training.optim={end.training.optim.name}")
    for section, names in (("training", OF_TRAINING), ("data", ("cutoff_length",))):
        for name in names:
            value = getattr(getattr(end, section), name)
            if value != getattr(getattr(start, section), name):
                written = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
                found.append(f"{section}.{name}={written}")
    return tuple(found)
