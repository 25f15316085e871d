"""From files, dicts and `key=value` settings to a `RunConfig`, or to one error that lists every problem."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from luthier.config import plugins
from luthier.config.adapters_section import AdapterEntry, CombineConfig
from luthier.config.files import ConfigLoader, read_file
from luthier.config.foreign_keys import TRANSFORMERS
from luthier.config.generation_section import GenerationSettings
from luthier.config.migration.table import is_llama_factory, luthiers_name
from luthier.config.model_section import QuantizationConfig, RopeScalingConfig
from luthier.config.optimizer_names import TRANSFORMERS_OPTIMIZERS
from luthier.config.schema import ModelConfig, RunConfig
from luthier.config.sections import PluginOptions
from luthier.config.stage_encoders import untrained_stages
from luthier.config.training_section import TrainingConfig
from luthier.foundation.errors import ConfigError, UserError
from luthier.foundation.registry import Registry, nearest

CHOICES: dict[str, tuple[Registry, str]] = {
    "stage": (plugins.STAGES, "sft"),
    "method": (plugins.METHODS, "lora"),
    "training.optim": (plugins.OPTIMIZERS, "adamw"),
}


def apply_override(raw: dict[str, Any], setting: str) -> None:
    """Write one `a.b.c=value` into a raw config; values are YAML, list positions are numbers.

    Raises:
        UserError: no `=`, or a path through something that is no mapping or list.
    """
    key, sign, text = setting.partition("=")
    if not sign or not key:
        raise UserError(f"the setting {setting!r} is not KEY=VALUE.", "For instance training.learning_rate=1e-4.")
    try:
        value = yaml.load(text, Loader=ConfigLoader) if text else None  # noqa: S506 - it is a SafeLoader
    except yaml.YAMLError as error:
        raise UserError(
            f"the value of {key} is broken YAML: {text!r}.",
            f"Plain text goes in two pairs of quotes: {key}='\"...\"'.",
        ) from error
    place: Any = raw
    *folders, last = key.split(".")
    for index, part in enumerate(folders):
        following = _grown(_look_up(place, part), folders[: index + 1], [*folders, last][index + 1])
        if not isinstance(following, (dict, list)):
            raise UserError(
                f"{key} can't be set: {'.'.join(folders[: index + 1])} is {following!r}, not a mapping.",
                "`luthier config explain` lists the keys.",
            )
        _put(place, part, following, key)
        place = following
    _put(place, last, value, key)


def _grown(value: Any, path: list[str], next_part: str) -> Any:
    """A short form grown into the long form that `next_part` looks into.

    So `method=lora method.rank=4` and `data.train=a.jsonl data.train.0.system=Hi` say what they look like.
    """
    if next_part.isdigit():
        if value is None:
            return []
        return [value] if isinstance(value, (str, dict)) else value
    if value is None:
        return {}
    if isinstance(value, str):
        key = "path" if path[0] == "data" or "adapters" in path else "type" if path[-1] == "quantization" else "name"
        return {key: value}
    return value


def _look_up(place: dict[str, Any] | list[Any], part: str) -> Any:
    if isinstance(place, dict):
        return place.get(part)
    return place[int(part)] if part.isdigit() and int(part) < len(place) else None


def _put(place: dict[str, Any] | list[Any], part: str, value: Any, key: str) -> None:
    """Write into a mapping, or into a list at a position that is there or one past the end."""
    if isinstance(place, dict):
        place[part] = value
    elif not part.isdigit() or int(part) > len(place):
        raise UserError(f"{key}: {part!r} is no position in a list of {len(place)}.", "Positions count from 0.")
    elif int(part) == len(place):
        place.append(value)
    else:
        place[int(part)] = value


SCRIPTS = (".py", ".sh", ".bash")


def load(
    source: str | Path | Mapping[str, Any] | None, overrides: Sequence[str] = (), *, for_training: bool = True
) -> RunConfig:
    """The config of a run.

    Args:
        source: a YAML or JSON file, a mapping, or None for command-line settings alone.
        overrides: `key=value` settings, applied in order.
        for_training: whether a stage must be one that can be trained; the data verbs look at rows for any.

    Raises:
        ConfigError: with every problem found. UserError: the file can't be read.
    """
    if source is None:
        raw: dict[str, Any] = {}
    elif isinstance(source, Mapping):
        raw = json.loads(json.dumps(source, default=str))  # a deep copy: overrides must not reach the caller's dict
    else:
        if (path := Path(source)).suffix.lower() in SCRIPTS and path.is_file():
            remedy = "The run of LLaMA-Factory's or DB-GPT-Hub's that it starts becomes one by:"
            raise UserError(f"{source} is a script, not a config.", f"{remedy} {_migration_of(str(source))}")
        raw = read_file(path)
    for setting in overrides:
        apply_override(raw, setting)
    where = str(source) if isinstance(source, (str, Path)) else "the config"
    return validate(raw, where, for_training=for_training)


def validate(raw: dict[str, Any], where: str = "the config", *, for_training: bool = True) -> RunConfig:
    """A raw mapping as a `RunConfig`; raises `ConfigError` with all problems."""
    if is_llama_factory(raw):
        raise _to_migrate(where)
    problems: list[str] = []
    filled = dict(raw)
    if isinstance(raw.get("training"), dict):
        filled["training"] = dict(raw["training"])
        _check_engine(filled["training"].get("engine"), problems)
    noted = set()  # choices that are missing below because something is wrong with them
    for key, (registry, default) in CHOICES.items():
        section, _, name = key.rpartition(".")
        place = filled.get(section) if section else filled
        if not isinstance(place, dict):
            continue  # a section that is left out has its defaults; one that is no mapping is told of below
        chosen = _choose(key, registry, place.get(name, default), problems, for_training)
        if chosen is not None:
            place[name] = chosen
        else:
            place.pop(name, None)
            noted.add((key,))
    wrong: list[Any] = []
    try:
        # an empty section is one that is left out; an empty name of the run's folder is none
        said = {key: value for key, value in filled.items() if value is not None or key == "output_dir"}
        config = RunConfig.model_validate(said)
        problems += config.training_problems() if for_training else []
    except ValidationError as error:
        wrong = [item for item in error.errors() if item["loc"][:1] not in noted]
        problems += describe(wrong, RunConfig)
    if problems:
        raise ConfigError(problems, where, _without(filled, [item["loc"] for item in wrong]))
    return config


def _to_migrate(where: str) -> UserError:
    """What to say of a config of LLaMA-Factory's: nobody mends it key by key."""
    return UserError(f"{where} is a config of LLaMA-Factory's.", f"Migrate it first: {_migration_of(where)}")


def _migration_of(where: str) -> str:
    """The command that migrates a file."""
    path = Path(where)
    if not path.suffix:
        return "luthier config migrate FILE --out luthier.yaml"
    out = path.with_name(f"{path.stem}.luthier.yaml")
    return shlex.join(["luthier", "config", "migrate", where, "--out", str(out)])


def _without(filled: dict[str, Any], places: Iterable[Sequence[int | str]]) -> RunConfig | None:
    """The config without the keys that are wrong (of a section's, the section's key as a whole); None if it needs them."""
    left = {key: dict(value) if isinstance(value, dict) else value for key, value in filled.items()}
    for key, (registry, default) in CHOICES.items():
        if "." not in key and left.get(key) is None:  # a section's own choice has a default
            left[key] = registry.load(default).Options(name=default)
    for place in places:
        key, *inner = map(str, place)
        section = left.get(key)
        if inner and isinstance(section, dict):
            section.pop(inner[0], None)
        else:
            left.pop(key, None)
    try:
        return RunConfig.model_validate(left)
    except ValidationError:
        return None


def _check_engine(name: Any, problems: list[str]) -> None:
    """Note an engine that there is not."""
    if isinstance(name, str) and name != "auto":
        try:
            plugins.ENGINES.load(name)
        except UserError as error:
            problems.append(f"training.engine: {error.problem} {error.remedy}")


def _choose(key: str, registry: Registry, value: Any, problems: list[str], for_training: bool) -> PluginOptions | None:
    """A plug-in's validated options from `name` or `{name: ..., ...}`; None after noting a problem."""
    settings = {"name": value} if isinstance(value, str) else value
    if not isinstance(settings, dict) or not isinstance(settings.get("name", ""), str):
        problems.append(f"{key}: must be a name or a mapping with a name, found {value!r}")
        return None
    settings = {"name": CHOICES[key][1], **settings}
    options: type[BaseModel] = PluginOptions
    try:
        if not (key == "stage" and settings["name"] in untrained_stages()):
            options = registry.load(settings["name"]).Options
        elif for_training:
            problems.append(
                f"stage: {settings['name']} can't be trained yet, only {' and '.join(registry.names())} can; "
                "`luthier data show` shows how its rows would be read"
            )
            return None
        checked = options.model_validate(settings)
    except UserError as error:
        theirs = TRANSFORMERS_OPTIMIZERS.get(settings["name"]) if key == "training.optim" else None
        remedy = f"transformers' {settings['name']} is {theirs} here." if theirs else error.remedy
        problems.append(f"{key}: {error.problem} {remedy}")
        return None
    except ValidationError as error:
        problems += describe(error.errors(), options, key)
        return None
    if not isinstance(checked, PluginOptions):
        problems.append(f"{key}: {settings['name']}.Options must inherit from luthier.config.sections.PluginOptions")
        return None
    return checked


def describe(errors: Iterable[Any], model: type[BaseModel], prefix: str = "") -> list[str]:
    """Pydantic's errors as sentences: where, what is asked for, what was found; one for each place."""
    sentences: dict[str, str] = {}
    for item in errors:
        unknown = item["type"] == "extra_forbidden"
        parts = _real_parts(item["loc"], model, unknown or item["type"] == "invalid_key")
        location = ".".join([prefix, *parts] if prefix else parts)
        if unknown:
            sentences[location] = f"{location}: {_unknown_key(location, parts, model)}"
        elif item["type"] == "missing":
            sentences[location] = f"{location}: is required and missing"
        elif item["loc"][-1:] == ("[key]",):
            sentences[location] = f"{location}: the key {item['input']!r} must be text: write it in quotes"
        elif item["type"] == "value_error":
            message = item["msg"].removeprefix("Value error, ")
            sentences[location] = f"{location}: {message}" if location else message
        else:
            wanted = _wanted(item)
            earlier = sentences.get(location)
            # a union reports every branch: `must be a valid string or must be a valid list`
            message = f"{earlier.rsplit(', found', 1)[0]} or {wanted}" if earlier else f"{location}: {wanted}"
            shown = repr(item.get("input"))
            sentences[location] = f"{message}, found {shown if len(shown) < 80 else shown[:77] + '...'}"
    return list(sentences.values())


def _wanted(item: Any) -> str:
    if item["type"] in ("model_type", "dict_type"):
        return "must be a mapping of keys"
    message: str = item["msg"].replace("Input should be", "must be").replace("unable to parse string as", "text is not")
    return message.replace("Value should", "must").replace("Keys should", "keys must")


def _real_parts(location: Sequence[int | str], model: type[BaseModel], last_is_a_key: bool) -> list[str]:
    """The keys and positions of an error's location, without the names of a union's branches between them."""
    section: type[BaseModel] | None = model
    parts: list[str] = []
    inside_mapping = False
    for index, part in enumerate(location):
        field = section.model_fields.get(str(part)) if section else None
        if section and field:
            inside_mapping = "dict[" in str(field.annotation)
            section = child_section(section, str(part))
            parts.append(str(part))
        elif isinstance(part, int) or (inside_mapping and "[" not in part):
            parts.append(str(part))
        elif last_is_a_key and index == len(location) - 1:
            parts.append(part)
    return parts


def _unknown_key(location: str, parts: Sequence[str], model: type[BaseModel]) -> str:
    """What to say of a key that is not there: where it stands instead, or what it may have been meant to be."""
    section: type[BaseModel] = model
    for parent in parts[:-1]:
        section = child_section(section, parent) or section
    key, known = parts[-1], list(section.model_fields)
    everywhere = all_keys()
    owners = _owners(key, location.rpartition(".")[0])
    if owners:
        return f"unknown key here; it is a setting of the {' and the '.join(owners)}"
    elsewhere = [name for name in everywhere if name.split(".")[-1] == key and name != location]
    if elsewhere:
        return f"unknown key here; luthier has it as {elsewhere[0]}"
    if named := luthiers_name(key, everywhere):
        return f"unknown key; LLaMA-Factory's {key} is {named} here"
    if key in TRANSFORMERS:
        return f"unknown key; transformers' {key} is {TRANSFORMERS[key]} here"
    if close := nearest(key, known, 2):
        return f"unknown key; did you mean {' or '.join(close)}?"
    if far := nearest(key, [name.split(".")[-1] for name in everywhere], 2):
        full = [name for name in everywhere if name.split(".")[-1] in far]
        return f"unknown key; did you mean {' or '.join(full[:2])}?"
    return f"unknown key; known here: {', '.join(known)}"


def _owners(key: str, choice: str) -> list[str]:
    """The plug-ins of one choice that have an option of this name: `method lora`."""
    if choice not in CHOICES:
        return []
    registry = CHOICES[choice][0]
    return [f"{registry.kind} {name}" for name in registry.names() if key in registry.load(name).Options.model_fields]


def child_section(section: Any, name: str) -> type[BaseModel] | None:
    """The section a field holds, looking through Annotated, lists and unions."""
    field = getattr(section, "model_fields", {}).get(name)
    found = list(_classes(field.annotation)) if field is not None else []
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
    found: dict[str, type[BaseModel]] = {
        "": RunConfig,
        "model": ModelConfig,
        "model.quantization": QuantizationConfig,
        "model.rope_scaling": RopeScalingConfig,
        "training": TrainingConfig,
        "generation": GenerationSettings,
    }
    data = child_section(RunConfig, "data")
    assert data is not None
    found["data"] = data
    entry = child_section(data, "train")
    assert entry is not None
    found["data.train.0"] = entry
    for key, (registry, _) in CHOICES.items():
        for name in registry.names():
            found[f"{key}:{name}"] = registry.load(name).Options
    # last: a misplaced rank or path is told of the method's and the data's place first
    return {**found, "model.adapters.0": AdapterEntry, "model.combine": CombineConfig}


def all_keys() -> list[str]:
    """Every dotted key a config may have; a plug-in's options stand under its choice (`method.rank`)."""
    keys: dict[str, None] = {}
    for place, section in sections().items():
        prefix = place.split(":")[0]
        for name in section.model_fields:
            keys[f"{prefix}.{name}" if prefix else name] = None
    return list(keys)


def dump(config: RunConfig) -> dict[str, Any]:
    """The resolved config as plain values, without secrets; the learning rate is the one that it trains with."""
    value: dict[str, Any] = config.model_dump(mode="json", exclude={"model": {"token"}})
    value["training"]["learning_rate"] = config.learning_rate()
    return value


def dump_yaml(config: RunConfig) -> str:
    """The resolved config as YAML, in the schema's order."""
    text: str = yaml.safe_dump(dump(config), sort_keys=False, allow_unicode=True)
    return text
