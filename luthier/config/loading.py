"""From files, dicts and `key=value` settings to a `RunConfig`, or to one error that lists every problem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from luthier.config import plugins
from luthier.config.foreign_keys import LLAMA_FACTORY
from luthier.config.schema import ModelConfig, PluginOptions, RunConfig, TrainingConfig
from luthier.foundation.errors import ConfigError, UserError
from luthier.foundation.files import need_file
from luthier.foundation.registry import Registry, nearest

CHOICES: dict[str, tuple[Registry, str]] = {"stage": (plugins.STAGES, "sft"), "method": (plugins.METHODS, "lora")}


class _UniqueKeyLoader(yaml.SafeLoader):
    """YAML's safe loader, which keeps the last of two equal keys, made to refuse them."""


def _unique_mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: dict[Any, int] = {}
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=True)
        line = key_node.start_mark.line + 1
        if isinstance(key, str) and key in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key!r} stands twice, in lines {seen[key]} and {line}", key_node.start_mark
            )
        if isinstance(key, str):
            seen[key] = line
    loader.flatten_mapping(node)
    return {loader.construct_object(k, deep=True): loader.construct_object(v, deep=True) for k, v in node.value}


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _unique_mapping)


def read_file(path: Path) -> dict[str, Any]:
    """A YAML or JSON config file as a dict (JSON is read as the YAML it is).

    Raises:
        UserError: missing, empty, not UTF-8, broken (line and column are named), or no mapping.
    """
    need_file(path, "the config file")
    if path.is_dir():
        raise UserError(f"the config {str(path)!r} is a folder.", f"Name a file, such as {path / 'config.yaml'}.")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"the config file {path} is not UTF-8 text: {error}.", "Save it as UTF-8.") from error
    try:
        # YAML refuses tabs between tokens, which JSON files may have
        raw = json.loads(text) if path.suffix == ".json" else yaml.load(text, Loader=_UniqueKeyLoader)  # noqa: S506 - a SafeLoader
    except json.JSONDecodeError as error:
        raise UserError(
            f"the config file {path} is broken JSON at line {error.lineno}, column {error.colno}: {error.msg}.",
            "Mend that line.",
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise UserError(f"the config file {path} is broken YAML{where}: {what}.", "Mend that line.") from error
    if not isinstance(raw, dict):
        raise UserError(
            f"the config file {path} holds {'nothing' if raw is None else type(raw).__name__}, not a mapping of keys.",
            "The README shows a config of six lines.",
        )
    return raw


def apply_override(raw: dict[str, Any], setting: str) -> None:
    """Write one `a.b.c=value` into a raw config; values are YAML, list positions are numbers.

    Raises:
        UserError: no `=`, or a path through something that is no mapping or list.
    """
    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise UserError(f"the setting {setting!r} is not KEY=VALUE.", "For instance training.learning_rate=1e-4.")
    try:
        value = yaml.safe_load(text) if text else None
    except yaml.YAMLError as error:
        raise UserError(f"the value of {key} is broken YAML: {text!r}.", "Quote it for the shell.") from error
    place: Any = raw
    *folders, last = key.split(".")
    for index, part in enumerate(folders):
        following = place[_position(part, place, key)] if _has(place, part) else None
        if isinstance(following, str):
            # the short form grows into its long form, so that `method=lora method.rank=4` says what it looks like
            following = {"path" if part.isdigit() else "name": following}
        if following is None:
            following = {}
        if not isinstance(following, (dict, list)):
            raise UserError(
                f"{key} can't be set: {'.'.join(folders[: index + 1])} is {following!r}, not a mapping.",
                "`luthier config explain` lists the keys.",
            )
        place[_position(part, place, key)] = following
        place = following
    place[_position(last, place, key)] = value


def _has(place: dict[str, Any] | list[Any], part: str) -> bool:
    return part.isdigit() and int(part) < len(place) if isinstance(place, list) else part in place


def _position(part: str, place: dict[str, Any] | list[Any], key: str) -> Any:
    if isinstance(place, dict):
        return part
    if not part.isdigit() or int(part) >= len(place):
        raise UserError(f"{key}: {part!r} is no position in a list of {len(place)}.", "Positions count from 0.")
    return int(part)


def load(source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The config of a run.

    Args:
        source: a YAML or JSON file, a mapping, or None for command-line settings alone.
        overrides: `key=value` settings, applied in order.

    Raises:
        ConfigError: with every problem found. UserError: the file can't be read.
    """
    if source is None:
        raw: dict[str, Any] = {}
    elif isinstance(source, Mapping):
        raw = json.loads(json.dumps(source, default=str))  # a deep copy: overrides must not reach the caller's dict
    else:
        raw = read_file(Path(source))
    for setting in overrides:
        apply_override(raw, setting)
    return validate(raw, str(source) if isinstance(source, (str, Path)) else "the config")


def validate(raw: dict[str, Any], where: str = "the config") -> RunConfig:
    """A raw mapping as a `RunConfig`; raises `ConfigError` with all problems."""
    problems: list[str] = []
    filled = dict(raw)
    for key, (registry, default) in CHOICES.items():
        filled[key] = _choose(key, registry, raw.get(key, default), problems)
    optim = raw.get("training", {}).get("optim") if isinstance(raw.get("training"), dict) else None
    if isinstance(optim, str):
        try:
            plugins.OPTIMIZERS.load(optim)
        except UserError as error:
            problems.append(f"training.optim: {error.problem} {error.remedy}")
    try:
        config = RunConfig.model_validate({key: value for key, value in filled.items() if value is not None})
    except ValidationError as error:
        failed_choices = {key for key in CHOICES if filled[key] is None}
        problems.extend(describe(item, RunConfig) for item in error.errors() if item["loc"][:1] not in {(k,) for k in failed_choices})
    if problems:
        raise ConfigError(problems, where)
    return config


def _choose(key: str, registry: Registry, value: Any, problems: list[str]) -> PluginOptions | None:
    """A plug-in's validated options from `name` or `{name: ..., ...}`; None after noting a problem."""
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not isinstance(settings.get("name", ""), str):
        problems.append(f"{key}: must be a name or a mapping with a name, found {value!r}")
        return None
    settings = {"name": CHOICES[key][1], **settings}
    try:
        options: type[BaseModel] = registry.load(settings["name"]).Options
        checked = options.model_validate(settings)
    except UserError as error:
        problems.append(f"{key}: {error.problem} {error.remedy}")
        return None
    except ValidationError as error:
        problems.extend(describe(item, options, key) for item in error.errors())
        return None
    assert isinstance(checked, PluginOptions)
    return checked


def describe(item: Any, model: type[BaseModel], prefix: str = "") -> str:
    """One of pydantic's errors as a sentence: where, what was found, what would do."""
    parts = [str(part) for part in item["loc"]]
    # a union's branch names stand between the real keys
    parts = [part for part in parts if part.isidentifier() or part.isdigit()]
    location = ".".join([prefix, *parts] if prefix else parts) or "config"
    found = item.get("input")
    if item["type"] == "extra_forbidden":
        return _unknown_key(location, parts[-1], model, parts[:-1])
    if item["type"] == "missing":
        return f"{location}: is required and missing"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{location}: {message}" if parts or prefix else message
    shown = repr(found)
    return f"{location}: {message}, found {shown if len(shown) < 80 else shown[:77] + '...'}"


def _unknown_key(location: str, key: str, model: type[BaseModel], parents: list[str]) -> str:
    section: Any = model
    for parent in parents:
        section = _child(section, parent) or section
    known = list(section.model_fields)
    close = nearest(key, known, 2)
    elsewhere = [name for name in all_keys() if name.split(".")[-1] == key and name != location]
    if elsewhere:
        return f"{location}: unknown key here; luthier has it as {elsewhere[0]}"
    if key in LLAMA_FACTORY:
        return f"{location}: unknown key; LLaMA-Factory's {key} is {LLAMA_FACTORY[key]} here"
    if close:
        return f"{location}: unknown key; did you mean {' or '.join(close)}?"
    far = nearest(key, [name.split(".")[-1] for name in all_keys()], 2)
    if far:
        full = [name for name in all_keys() if name.split(".")[-1] in far]
        return f"{location}: unknown key; did you mean {' or '.join(full[:2])}?"
    return f"{location}: unknown key; known here: {', '.join(known)}"


def _child(section: Any, name: str) -> type[BaseModel] | None:
    """The section a field holds, looking through Annotated, lists and unions."""
    field = getattr(section, "model_fields", {}).get(name)
    found = [kind for kind in _classes(field.annotation)] if field is not None else []
    return found[0] if found else None


def _classes(annotation: Any) -> Iterable[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in getattr(annotation, "__args__", ()):
        yield from _classes(argument)
    if hasattr(annotation, "__origin__") and not getattr(annotation, "__args__", ()):
        yield from _classes(annotation.__origin__)


def sections() -> dict[str, type[BaseModel]]:
    """Every section and plug-in choice by its dotted place: `training`, `method:lora`."""
    found: dict[str, type[BaseModel]] = {"": RunConfig, "model": ModelConfig, "training": TrainingConfig}
    data = _child(RunConfig, "data")
    assert data is not None
    found["data"] = data
    entry = _child(data, "train")
    assert entry is not None
    found["data.train.0"] = entry
    for key, (registry, _) in CHOICES.items():
        for name in registry.names():
            found[f"{key}:{name}"] = registry.load(name).Options
    return found


def all_keys() -> list[str]:
    """Every dotted key a config may have; a plug-in's options stand under its choice (`method.rank`)."""
    keys: dict[str, None] = {}
    for place, section in sections().items():
        prefix = place.split(":")[0]
        for name in section.model_fields:
            keys[f"{prefix}.{name}" if prefix else name] = None
    return list(keys)


def dump(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, without secrets."""
    value: dict[str, Any] = config.model_dump(mode="json", exclude={"model": {"token"}})
    return value


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as YAML, in the schema's order."""
    text: str = yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True)
    return text
