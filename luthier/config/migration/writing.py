"""A migrated config as YAML: short forms, the schema's order, and a header that says what changed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from luthier.config.data_section import DataConfig
from luthier.config.migration.answers import Outcome
from luthier.config.migration.asking import CHOICES, ENGINE
from luthier.config.training_section import TrainingConfig

WIDTH = 110


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a config."""
    raw: dict[str, Any] = {"model": {}, "data": {"train": None}, "stage": {}, "method": {}, "training": {}}
    for target, value in settings.items():
        whole = f"{target}.name" if target in CHOICES and target != ENGINE else target
        *folders, last = whole.split(".")
        place = raw
        for part in folders:
            place = place.setdefault(part, {})
        place[last] = value
    for key, section in (("data", DataConfig), ("training", TrainingConfig)):
        raw[key] = {name: raw[key][name] for name in section.model_fields if name in raw[key]} | raw[key]
    train = raw["data"]["train"]
    if train is None:
        del raw["data"]["train"]
    elif len(train) == 1:
        raw["data"]["train"] = train[0]
    for place, key in ((raw, "model"), (raw, "stage"), (raw, "method"), (raw["training"], "optim")):
        if "name" in place.get(key, {}):
            found = {"name": place[key].pop("name"), **place[key]}
            place[key] = found["name"] if len(found) == 1 else found
    return {key: value for key, value in raw.items() if value not in ({}, [])}


class _Dumper(yaml.SafeDumper):
    """Small mappings and lists in one line; numbers as YAML reads them back."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Lists stand deeper than their key."""
        super().increase_indent(flow, False)


def _number(dumper: yaml.SafeDumper, value: float) -> yaml.Node:
    text = repr(value)
    if "e" in text and "." not in text.split("e")[0]:  # YAML 1.1 takes 5e-05 for a text
        text = text.replace("e", ".0e", 1)
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


_Dumper.add_representer(float, _number)


def config_yaml(config: Mapping[str, Any]) -> str:
    """A config as YAML."""
    text: str = yaml.dump(dict(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=WIDTH)
    return text


def commented(lines: Sequence[str]) -> str:
    """Lines as comments, wrapped."""
    wrapped = [textwrap.wrap(line, WIDTH, initial_indent="# ", subsequent_indent="#   ") or ["#"] for line in lines]
    return "\n".join(part for lines in wrapped for part in lines) + "\n"


def header(source: str, outcomes: Sequence[Outcome], added: Mapping[str, Any]) -> str:
    """What changed, and what was not taken over."""
    lines = [f"Migrated from {source} by `luthier config migrate`."]
    for status, title in (("changed", "Changed in meaning:"), ("refused", "Not taken over:")):
        found = [f"{one_line(outcome)}: {outcome.note}" for outcome in outcomes if outcome.status == status]
        lines += [title, *(f"- {line}" for line in found)] if found else []
    if added:
        lines.append(f"Written because LLaMA-Factory's default is another: {', '.join(added)}.")
    return commented(lines)


def flow(value: Any) -> str:
    """A value in one line of YAML."""
    text: str = yaml.dump(value, Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=10_000)
    return text.removesuffix("...\n").strip()


def one_line(outcome: Outcome) -> str:
    """Key and value in one line."""
    value = str(outcome.value).replace("\n", " ")
    return f"{outcome.key} {value}" if outcome.value is not None else outcome.key
