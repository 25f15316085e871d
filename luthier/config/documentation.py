"""What every key of a config means, read from the schema and the plug-ins, so that no list is kept by hand."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, dataclass
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from luthier.config.loading import CHOICES, sections
from luthier.config.schema import RunConfig

REFERENCES = "#/$defs/{model}"


@dataclass(frozen=True)
class KeyHelp:
    """One key of the config.

    Args:
        key: dotted place (`training.seed`); a plug-in's options stand under its choice (`method.rank`).
        type: what it takes, in words.
        default: as YAML would write it; "(required)" where there is none.
        description: the schema's sentence.
        valid_for: the plug-in whose option it is ("method lora"), or "" for a key that is always valid.
    """

    key: str
    type: str
    default: str
    description: str
    valid_for: str

    def as_dict(self) -> dict[str, str]:
        return asdict(self)


def key_helps() -> list[KeyHelp]:
    """Every key, in the schema's order; one that several plug-ins have appears once for each."""
    found = []
    for place, section in sections().items():
        choice, _, plugin = place.partition(":")
        schema = section.model_json_schema(mode="validation")
        required = set(schema.get("required", ()))
        for name, field in section.model_fields.items():
            if plugin and name == "name":
                continue  # the choice itself, documented at the top
            found.append(
                KeyHelp(
                    key=f"{choice}.{name}" if choice else name,
                    type=type_in_words(schema["properties"][name], schema.get("$defs", {})),
                    default="(required)" if name in required else _default_text(section, name),
                    description=field.description or "",
                    valid_for=f"{choice} {plugin}" if plugin else "",
                )
            )
    return _with_choices(found)


def _with_choices(found: list[KeyHelp]) -> list[KeyHelp]:
    """The keys that choose a plug-in say which there are and which is the default."""
    named = []
    for item in found:
        if item.key in CHOICES:
            registry, default = CHOICES[item.key]
            named.append(
                KeyHelp(item.key, f"name or mapping: {', '.join(registry.names())}", default, item.description, "")
            )
        else:
            named.append(item)
    return named


def about_plugin(choice: str, name: str) -> str:
    """What a plug-in's author says of it: the texts of its file and of its options (purpose, paper)."""
    module = CHOICES[choice][0].load(name)
    texts = [inspect.cleandoc(text) for text in (module.__doc__, module.Options.__doc__) if text]
    return "\n".join(dict.fromkeys(texts))


def type_in_words(schema: dict[str, Any], definitions: dict[str, Any]) -> str:
    """A JSON schema as a short phrase: `number > 0, or null`."""
    if "$ref" in schema:
        return type_in_words(definitions[schema["$ref"].rsplit("/", 1)[-1]], definitions)
    for union in ("anyOf", "oneOf"):
        if union in schema:
            return ", or ".join(dict.fromkeys(type_in_words(branch, definitions) for branch in schema[union]))
    if "enum" in schema:
        return " | ".join(str(value) for value in schema["enum"])
    if "const" in schema:
        return str(schema["const"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of ({type_in_words(schema.get('items', {}), definitions)})"
    words = {"string": "text", "boolean": "true | false", "integer": "whole number", "object": "mapping"}
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    limits = [f"{sign} {schema[name]:g}" for name, sign in signs.items() if name in schema]
    return " ".join([words.get(kind, kind), *limits])


def _default_text(section: type[BaseModel], name: str) -> str:
    value = section.model_fields[name].get_default(call_default_factory=True)
    if isinstance(value, BaseModel):
        return "(its keys' defaults)"
    return json.dumps(value, ensure_ascii=False, default=str)


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a config file: short forms, long forms and every plug-in's options."""
    plugins = {place: options for place, options in sections().items() if ":" in place}
    wanted: list[tuple[type[BaseModel], Any]] = [(RunConfig, "validation")]
    wanted += [(options, "validation") for options in plugins.values()]
    places, together = models_json_schema(wanted, ref_template=REFERENCES)
    definitions = together["$defs"]
    root = dict(_resolve(places[RunConfig, "validation"], definitions))
    properties = dict(root["properties"])
    for choice, (registry, default) in CHOICES.items():
        section, _, key = choice.rpartition(".")
        owner = definitions[sections()[section].__name__]["properties"] if section else properties
        long_forms = []
        for name in registry.names():
            place = places[plugins[f"{choice}:{name}"], "validation"]
            long_forms.append({"allOf": [place, {"properties": {"name": {"const": name}}}]})
        owner[key] = {
            "description": owner[key].get("description", ""),
            "default": default,
            "anyOf": [{"type": "string", "description": f"one of {', '.join(registry.names())}"}, *long_forms],
        }
    root["properties"] = properties
    root["required"] = [name for name in root.get("required", ()) if name not in CHOICES]
    root["title"] = "luthier config"
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "$defs": definitions}


def _resolve(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref")
    found: dict[str, Any] = definitions[reference.rsplit("/", 1)[-1]] if reference else schema
    return found
