"""A metric as a config or a command line names it: `rouge`, or `{name: rouge, tokenizer: english}`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from pydantic import BaseModel

from luthier.config.plugins import METRICS
from luthier.foundation.errors import UserError


def metric_options(value: Any, task: str = "text") -> Any:
    """A metric's validated options.

    Args:
        task: what it must be able to measure, as in `luthier.metrics._metric`.

    Raises:
        ValueError: it measures something else, or its options are wrong (pydantic's), or there is none of that name.
    """
    if isinstance(value, BaseModel):
        return value
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not isinstance(settings.get("name"), str):
        raise ValueError(f"a metric is a name, or a mapping with a name; found {value!r}")
    try:
        module = METRICS.load(settings["name"])
    except UserError as error:
        raise ValueError(f"{error.problem} {error.remedy}") from error
    tasks: frozenset[str] = getattr(module, "TASKS", frozenset())
    if task not in tasks:
        fit = [name for name in METRICS.names() if task in METRICS.load(name).TASKS]
        kind = "written answers" if task == "text" else f"{task.replace('_', ' ')} predictions"
        raise ValueError(f"{settings['name']} can't measure {kind}; these can: {', '.join(fit)}")
    return module.Options.model_validate(settings)


def given_by(options: BaseModel) -> tuple[str, ...]:
    """What the numbers of a metric are called."""
    name: str = options.name  # type: ignore[attr-defined]
    return tuple(getattr(METRICS.load(name), "GIVES", (name,)))


def check_packages(metrics: Sequence[BaseModel]) -> None:
    """Raise MissingExtraError where a package that a metric stands on is not installed: before hours of training or of
    generating, not after them."""
    for options in metrics:
        module = METRICS.load(options.name)  # type: ignore[attr-defined]
        if hasattr(module, "needs"):
            module.needs(options)


def check_references(metrics: Sequence[BaseModel], references: Iterable[tuple[str, str]]) -> None:
    """Raise what metrics have against references, before answers are generated to be measured with them.

    Args:
        references: with the place of each, for messages; looked at only where a metric can't measure all there are.

    Raises:
        DataError: a reference that one of them can't measure.
    """
    modules = [(METRICS.load(options.name), options) for options in metrics]  # type: ignore[attr-defined]
    choosy = [(module, options) for module, options in modules if hasattr(module, "check")]
    if choosy:
        found = list(references)
        for module, options in choosy:
            module.check(options, found)
