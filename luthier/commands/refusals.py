"""What can be wrong with a config before any part of it is opened, told at once.

Most of it is found without torch and transformers, which take seconds to import: a path that does not exist is answered
while the finger is still on the key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from luthier.config.loading import load
from luthier.config.metric_choice import check_packages
from luthier.config.plugins import METHODS
from luthier.config.schema import RunConfig
from luthier.data.locating import check_local
from luthier.data.rendering import AUTO
from luthier.data.template_files import load_template
from luthier.foundation.errors import ConfigError, MissingExtraError, ModelError, UserError
from luthier.model.finding import ModelSource, find, is_base_quantized, trained_on
from luthier.model.method import Method
from luthier.model.quantization import saved_name
from luthier.model.resolving import locate


class _Problems(list[UserError]):
    def attempt(self, check: Callable[[], object]) -> None:
        try:
            check()
        except UserError as error:
            self.append(error)

    def lines(self) -> list[str]:
        return [line for error in self for line in _lines(error)]


def _lines(error: UserError) -> list[str]:
    return error.problems if isinstance(error, ConfigError) else [f"{error.problem} {error.remedy}".strip()]


def read(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run. Where keys are wrong, the paths and names in the others are looked for all the same.

    Raises:
        ConfigError: with every problem found. UserError: the file can't be read.
    """
    try:
        return load(source, overrides)
    except ConfigError as error:
        if not isinstance(error.rest, RunConfig):
            raise
        more = _not_found(error.rest, may_fetch=False)
        raise ConfigError([*error.problems, *more.lines()], error.where) from None


def check(config: RunConfig, *, may_fetch: bool = True) -> None:
    """Refuse a config whose model, files, template, schedule, callbacks, optimizer or metrics can't be used.

    Args:
        may_fetch: whether a model of a hub's is fetched, where nothing else is wrong, to be looked at.

    Raises:
        ConfigError: several problems. UserError: the only one.
    """
    training = config.training
    problems = _Problems()
    if training.lr_scheduler_kwargs or training.lr_scheduler_type in ("cosine_with_min_lr", "warmup_stable_decay"):
        # without settings every other schedule can be made
        from luthier.training.optimization import check_schedule

        problems.attempt(partial(check_schedule, config))
    if training.report_to or training.callbacks or training.eval_strategy != "no":
        from luthier.training.callbacks import SERVICES, callback_problems, import_service

        found = callback_problems(config)
        if found:
            problems.append(ConfigError(found))
        for service in training.report_to:
            if service in SERVICES:
                problems.attempt(partial(import_service, service))
    package = training.optim.package
    if package is not None and find_spec(package) is None:
        problems.append(MissingExtraError(package, "optimizers", f"training.optim: {training.optim.name}"))
    problems.attempt(partial(check_packages, training.answer_metrics()))
    problems[:0] = _not_found(config, may_fetch=may_fetch and not problems)
    if len(problems) == 1:
        raise problems[0]
    if problems:
        raise ConfigError(problems.lines())


def _not_found(config: RunConfig, *, may_fetch: bool) -> _Problems:
    """Files, a template and a model that are not there. A model is fetched only where nothing else is wrong."""
    problems = _Problems()
    for name in ("train", "validation", "test"):
        entries = getattr(config.data, name)
        for entry in entries if isinstance(entries, list) else ():
            problems.attempt(partial(check_local, entry))
    if config.data.template != AUTO:
        problems.attempt(partial(load_template, config.data.template))
    try:
        hub, _ = locate(config.model.name)
        if hub == "local" or (may_fetch and not problems):
            _check_method(config, find(config.model))
    except UserError as error:
        problems.insert(0, error)
    return problems


def _check_method(config: RunConfig, source: ModelSource) -> None:
    """Raise ModelError for a method that can't train beside quantized weights."""
    if not is_base_quantized(config.model, source):
        return
    method: Method = METHODS.load(config.method.name).build(config.method)
    if problem := method.quantized_problem():
        how = trained_on(config.model, source).quantization or saved_name(source.saved_quantization or {})
        raise ModelError(
            f"the base is quantized ({how}): {problem}.", "Use method: lora, or a base with plain weights."
        )
