"""`luthier plan`: what a config will do and take, found out before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.commands import refusals
from luthier.config.loading import load
from luthier.config.schema import RunConfig
from luthier.foundation.errors import HubError
from luthier.planning.hardware import Hardware, parse_hardware
from luthier.planning.model_shapes import named_shape, shape_of

if TYPE_CHECKING:
    from luthier.commands.setup import Setup
    from luthier.data.report import DataReport
    from luthier.planning.advice import Advice
    from luthier.planning.batch_tokens import BatchTokens
    from luthier.planning.planner import Plan, Planner
    from luthier.planning.subject import Subject

UNREAD = "rows-that-are-not-read"  # stands for data.train where a shape is planned without data


@dataclass
class PlanResult:
    """What a run will do and take; docs/plan.md describes the keys.

    Args:
        examples, steps_per_epoch, tokens_per_epoch, targets_per_epoch: None where the rows are not known.
        data: the data report's own values.
        plan: memory, time and disk. advice: what to change where it does not fit.
        remarks: what a person should know first, one sentence each.
    """

    trainable_parameters: int
    total_parameters: int
    examples: int | None
    examples_per_step: int
    steps_per_epoch: int | None
    total_steps: int | None
    warmup_steps: int | None
    learning_rate: float
    learning_rate_origin: str
    tokens_per_epoch: int | None
    targets_per_epoch: int | None
    data: dict[str, Any]
    remarks: list[str]
    plan: Plan = field(repr=False)
    advice: Advice | None = None
    report: DataReport | None = field(default=None, repr=False)

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for --json."""
        values = {key: value for key, value in self.__dict__.items() if key not in ("report", "plan", "advice")}
        advice = self.advice.as_dict() if self.advice is not None else None
        return values | self.plan.as_dict() | {"advice": advice}

    def table(self) -> str:
        """For the terminal."""
        from luthier.commands.plan_table import table

        return table(self)


def plan(
    source: str | Path | Mapping[str, Any] | None,
    overrides: Sequence[str] = (),
    *,
    hardware: str | None = None,
    strategy: str | None = None,
    model_shape: str | None = None,
    trust_remote_code: bool = False,
) -> PlanResult:
    """Count rows, tokens and parameters of a config, and reckon memory, time and disk; no weights are read.

    Args:
        hardware: such as 1x24GB or 8xA100-80GB; None: this machine.
        strategy: single, ddp, fsdp, zero-1, zero-2, zero-3 or offload; None: single, or ddp on several devices.
        model_shape: a public model's shape in place of the config's model; rows are then taken to be as long as
            data.cutoff_length allows.

    Raises:
        UserError: whatever of it can't be used.
    """
    wanted = parse_hardware(hardware) if hardware is not None else None
    if model_shape is not None:
        config = _without_data(source, [*overrides, f"model.name={named_shape(model_shape).name}"])
        return _of_shape(config, wanted, strategy, [])
    config = refusals.read(source, overrides)
    try:
        refusals.check(config)
    except HubError as error:
        if shape_of(config.model.name) is None:
            raise
        reason = error.problem.rstrip(".")
        return _of_shape(config, wanted, strategy, [f"planned from the model's published shape: {reason}"])

    from luthier.commands.setup import set_up
    from luthier.planning.subject import Subject

    remarks: list[str] = []
    setup = set_up(config, trust_remote_code=trust_remote_code, say=remarks.append)

    subject = Subject.of(setup, trust_remote_code=trust_remote_code)
    return _result(setup, *_planned(subject, wanted, strategy), remarks)


def _planned(subject: Subject, hardware: Hardware | None, strategy: str | None) -> tuple[Plan, Advice | None]:
    from luthier.planning.advice import advise, shared_out
    from luthier.planning.planner import Planner

    planner = Planner(subject, hardware, strategy)
    merged, remark = _merged(planner)
    found = planner.plan()
    found.merged = merged
    if remark:
        found.remarks.insert(0, remark)
        found.over_budget = merged is None
    if found.held is not False or found.fits_host is False:
        return found, None
    advice = advise(planner, written=subject.config)
    if sentence := shared_out(planner):
        found.remarks.insert(0, sentence)
    return found, advice


def _merged(planner: Planner) -> tuple[BatchTokens | None, str]:
    """Settle training.tokens_per_batch auto for the planner: what it comes to, None where a run would be refused; and why, or
    that the budget is more than the device has."""
    from luthier.foundation.devices import choose_device, free_memory_bytes
    from luthier.foundation.files import human_bytes
    from luthier.planning.batch_tokens import BudgetTooSmallError, choose_tokens, with_tokens

    subject = planner.subject
    training = subject.config.training
    if training.tokens_per_batch != "auto":
        return None, ""
    here = planner.hardware.is_this_machine
    try:
        found = choose_tokens(
            planner, subject.config, free_memory_bytes(choose_device(training.use_cpu)) if here else None
        )
    except BudgetTooSmallError as error:
        planner.subject = subject.under(with_tokens(subject.config, error.tokens))
        return None, f"{error.problem} {error.remedy}"
    planner.subject = subject.under(with_tokens(subject.config, found.tokens))
    usable = planner.device.usable_bytes
    if found.budget_bytes <= usable:
        return found, ""
    budget, has = human_bytes(found.budget_bytes), human_bytes(usable)
    return (
        found,
        f"training.memory_budget_gib is {budget}, more than the {has} that can be used of {planner.device.name}",
    )


def _result(setup: Setup, plan: Plan, advice: Advice | None, remarks: list[str]) -> PlanResult:
    from luthier.training.optimization import warmup_steps

    config, data = setup.config, setup.data
    shown = set(data.report.remarks())  # the report's table prints those itself
    steps = setup.schedule.total_steps if plan.ranks == 1 else plan.steps
    return PlanResult(
        trainable_parameters=setup.count.trainable,
        total_parameters=setup.count.total,
        examples=len(data.train),
        examples_per_step=setup.schedule.examples_per_step * plan.ranks,
        steps_per_epoch=setup.schedule.steps_per_epoch if plan.ranks == 1 else plan.steps_per_epoch,
        total_steps=steps,
        warmup_steps=warmup_steps(config.training.warmup_steps, steps),
        learning_rate=config.learning_rate(),
        learning_rate_origin=config.learning_rate_origin(),
        tokens_per_epoch=data.train.tokens,
        targets_per_epoch=data.train.targets,
        data=data.report.as_dict(),
        remarks=[*(remark for remark in remarks if remark not in shown), *plan.remarks],
        plan=plan,
        advice=advice,
        report=data.report,
    )


def _without_data(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str]) -> RunConfig:
    """The config of a shape, which may lack data."""
    given = any(setting.startswith(("data.train", "data=")) for setting in overrides)
    return load(source, overrides if source is not None or given else [f"data.train={UNREAD}", *overrides])


def _of_shape(config: RunConfig, hardware: Hardware | None, strategy: str | None, remarks: list[str]) -> PlanResult:
    """A plan from sizes alone."""
    from luthier.planning.subject import Subject
    from luthier.training.optimization import warmup_steps

    shape = named_shape(config.model.name)
    subject = Subject.of_shape(config, shape.model_config_of())
    plan, advice = _planned(subject, hardware, strategy)
    training = config.training
    remarks = [
        *remarks,
        f"rows are taken to have data.cutoff_length={config.data.cutoff_length} tokens, all trained: without a tokenizer "
        "they can't be counted",
        *plan.remarks,
    ]
    steps = training.max_steps if training.max_steps > 0 else None
    return PlanResult(
        trainable_parameters=plan.trainable_parameters,
        total_parameters=plan.total_parameters,
        examples=None,
        examples_per_step=training.per_device_train_batch_size * training.gradient_accumulation_steps * plan.ranks,
        steps_per_epoch=None,
        total_steps=steps,
        warmup_steps=warmup_steps(training.warmup_steps, steps) if steps else None,
        learning_rate=config.learning_rate(),
        learning_rate_origin=config.learning_rate_origin(),
        tokens_per_epoch=None,
        targets_per_epoch=None,
        data={},
        remarks=remarks,
        plan=plan,
        advice=advice,
    )
