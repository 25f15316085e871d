"""A migrated config in its short forms and the schema's order, and a header that says what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from luthier.config.data_section import DataConfig
from luthier.config.generation_section import GenerationSettings
from luthier.config.migration.answers import Outcome
from luthier.config.migration.asking import CHOICES, ENGINE
from luthier.config.training_section import TrainingConfig
from luthier.config.yaml_text import commented


def nested(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as a config."""
    raw: dict[str, Any] = {
        "model": {},
        "data": {"train": None},
        "stage": {},
        "method": {},
        "training": {},
        "generation": {},
    }
    for target, value in settings.items():
        whole = f"{target}.name" if target in CHOICES and target != ENGINE else target
        *folders, last = whole.split(".")
        place = raw
        for part in folders:
            place = place.setdefault(part, {})
        place[last] = value
    for key, section in (("data", DataConfig), ("training", TrainingConfig), ("generation", GenerationSettings)):
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


def header(source: str, outcomes: Sequence[Outcome], added: Mapping[str, Any]) -> str:
    """What changed, and what was not taken over."""
    lines = [f"Migrated from {source} by `luthier config migrate`."]
    for status, title in (("changed", "Changed in meaning:"), ("refused", "Not taken over:")):
        found = [f"{one_line(outcome)}: {outcome.note}" for outcome in outcomes if outcome.status == status]
        lines += [title, *(f"- {line}" for line in found)] if found else []
    if added:
        lines.append(f"Written because LLaMA-Factory's default is another: {', '.join(added)}.")
    return commented(lines)


def one_line(outcome: Outcome) -> str:
    """Key and value in one line."""
    value = str(outcome.value).replace("\n", " ")
    return f"{outcome.key} {value}" if outcome.value is not None else outcome.key
