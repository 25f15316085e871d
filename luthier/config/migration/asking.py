"""What luthier can do with a key and a value, asked of its schema and registries, so that no list of it is kept here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from luthier.config import plugins
from luthier.config.chat_templates import template_names
from luthier.config.loading import child_section, describe
from luthier.config.schema import RunConfig
from luthier.foundation.errors import UserError
from luthier.foundation.registry import Registry

OPTIMIZER = "training.optim"
ENGINE = "training.engine"
CHOICES: Mapping[str, tuple[Registry, str]] = {
    "stage": (plugins.STAGES, "luthier can't train stage {name} yet, only {known}"),
    "method": (plugins.METHODS, "luthier has no method {name} yet, only {known}"),
    OPTIMIZER: (plugins.OPTIMIZERS, "luthier has no optimizer {name} yet, only {known}"),
    ENGINE: (plugins.ENGINES, "luthier has no engine {name} yet, only {known}"),
}


def refusal(target: str, value: Any, chosen: Mapping[str, str]) -> str | None:
    """Why luthier can't take a value, or None where it can.

    Args:
        target: a dotted key of a config; `stage`, `method`, `training.optim` and `training.engine` take a plug-in's name.
        chosen: the plug-ins that were chosen, by those keys.
    """
    if target in CHOICES:
        registry, sentence = CHOICES[target]
        known = registry.names()
        if value in known or (target, value) == (ENGINE, "auto"):
            return None
        return sentence.format(name=value, known=_listed(known))
    if target == "data.template" and value not in ("auto", *template_names()):
        return f"luthier has no template {value}"
    section, name = _place(target, chosen)
    if isinstance(section, str):
        return section
    return _misfit(section, name, target, value)


def lacks(target: str, chosen: Mapping[str, str]) -> bool:
    """Whether luthier has no such key at all."""
    return isinstance(_place(target, chosen)[0], str)


def default_of(target: str, chosen: Mapping[str, str]) -> Any:
    """Luthier's own default of a key it has; None for one that its section can't be without, which is absent then."""
    if target in (OPTIMIZER, ENGINE):
        return {OPTIMIZER: "adamw", ENGINE: "auto"}[target]
    section, name = _place(target, chosen)
    assert not isinstance(section, str)
    field = section.model_fields[name]
    return None if field.is_required() else field.get_default(call_default_factory=True)


def _place(target: str, chosen: Mapping[str, str]) -> tuple[type[BaseModel] | str, str]:
    """The section that has a key, or why there is none."""
    section: type[BaseModel] = RunConfig
    parts = target.split(".")
    for position, part in enumerate(parts[:-1]):
        path = ".".join(parts[: position + 1])
        found: type[BaseModel] | None
        if path in CHOICES:
            registry = CHOICES[path][0]
            if path not in chosen:
                return f"it is a setting of the {registry.kind}, which luthier does not have yet", ""
            try:
                found = registry.load(chosen[path]).Options
            except UserError:
                return refusal(path, chosen[path], chosen) or "", ""
        else:
            found = child_section(section, part)
        if found is None:
            return f"luthier has no {path} yet", ""
        section = found
    name = parts[-1]
    if name in section.model_fields:
        return section, name
    owner = ".".join(parts[:-1])
    if owner in CHOICES:
        others = [field for field in section.model_fields if field != "name"]
        only = f", only {_listed(others)}" if 0 < len(others) <= 3 else ""
        return f"luthier's {CHOICES[owner][0].kind} {chosen[owner]} has no {name}{only}", ""
    return f"luthier has no {target} yet", ""


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def _misfit(section: type[BaseModel], name: str, target: str, value: Any) -> str | None:
    """What the schema says of one value; what is wrong with others is not asked."""
    if value is None and type(None) in get_args(section.model_fields[name].annotation):
        return None
    try:
        section.model_validate({name: value})
    except ValidationError as error:
        mine = [item for item in error.errors() if item["loc"][:1] == (name,)]
        return "; ".join(describe(mine, section, target.rpartition(".")[0])) or None
    return None
