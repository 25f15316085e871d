"""LLaMA-Factory's keys, read from llama_factory.yaml, whose first lines say what its columns mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import Field

from luthier.config.sections import Section

Kind = Literal["flag", "whole", "number", "text", "names", "mapping", "anything"]
ABSENT = "(absent)"  # a default of null is a default too


class Key(Section):
    """One row of the table."""

    to: str | None = None
    takes: Kind | tuple[str, ...] = "anything"
    values: dict[Any, Any] = Field(default_factory=dict)
    default: Any = ABSENT
    old: Any = ABSENT
    changed: str = ""
    remark: str = ""
    always: str | None = None
    never: str | None = None
    instead: str = ""
    alias_of: str | None = Field(None, alias="is")
    rule: str | None = None
    option: str | None = None
    says: str | None = None
    needs: dict[str, Any] = Field(default_factory=dict)
    excludes: tuple[str, ...] = ()

    def hint(self) -> str:
        """Luthier's name for it, in the words of an error message."""
        if self.says:
            return self.says
        if self.to:
            return self.to
        if self.always is not None:
            return f"nothing ({self.always or self.changed})"
        if self.never is not None:
            return f"nothing ({self.never})"
        return f"the option {self.option}" if self.option else "for `luthier config migrate` to say"


@dataclass(frozen=True)
class Template:
    """Luthier's name of a template of LLaMA-Factory, and in what it differs, if in anything."""

    name: str
    changed: str = ""


@dataclass(frozen=True)
class Table:
    """All rows."""

    keys: Mapping[str, Key]
    templates: Mapping[str, Template]

    def canonical(self, key: str) -> str:
        """The current name of a key."""
        return self.keys[key].alias_of or key

    def row(self, key: str) -> Key:
        """A key's row, an older name's being that of the current one."""
        return self.keys[self.canonical(key)]


@cache
def table() -> Table:
    """The table of the file."""
    text = resources.files(__package__).joinpath("llama_factory.yaml").read_text(encoding="utf-8")
    # the loader in C, where PyYAML has it, reads these lines ten times as fast
    raw = yaml.load(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506 - both are safe
    keys = {}
    for group in raw["groups"]:
        for name, row in group["keys"].items():
            keys[name] = Key.model_validate({**row, "needs": {**group.get("needs", {}), **row.get("needs", {})}})
    templates = {
        name: Template(found) if isinstance(found, str) else Template(**found)
        for name, found in raw["templates"].items()
    }
    return Table(keys, templates)


def luthiers_name(key: str, known: Collection[str]) -> str | None:
    """Luthier's name for a key of LLaMA-Factory's, in the words of an error message; None where there is none.

    Args:
        known: luthier's own keys, dotted.
    """
    if key not in table().keys:
        return None
    row = table().row(key)
    if row.to and not row.says and row.to not in known and row.to.rpartition(".")[0] not in known:
        return None
    return row.hint()


OURS_TOO = ("stage", "output_dir")  # top-level keys of both


def is_llama_factory(raw: Mapping[Any, Any]) -> bool:
    """Whether a config is LLaMA-Factory's: it names a model its way, or has three keys of it beside each other."""
    found = [key for key in raw if key in table().keys and key not in OURS_TOO]
    sections = {"model", "data", "training", "method"} & set(raw)
    return not sections and ("model_name_or_path" in found or len(found) >= 3)
