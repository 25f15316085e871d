"""`luthier config schema|explain`: what a config may say, read from the schema itself."""

from __future__ import annotations

import textwrap
from dataclasses import dataclass
from typing import Any

from luthier.config import documentation
from luthier.config.documentation import KeyHelp
from luthier.config.foreign_keys import TRANSFORMERS
from luthier.config.loading import CHOICES, all_keys
from luthier.config.migration.table import luthiers_name
from luthier.foundation.errors import UserError
from luthier.foundation.registry import nearest

WIDTH = 110


@dataclass(frozen=True)
class Explanation:
    """One key (once for each plug-in that has it), or a section with its keys.

    Args:
        key: what was asked for, "" for the whole config.
        entries: the keys, with type, default and description.
        notes: what a plug-in's author says of it, by plug-in ("method lora").
    """

    key: str
    entries: tuple[KeyHelp, ...]
    notes: dict[str, str]

    def as_dict(self) -> dict[str, Any]:
        return {"key": self.key, "entries": [entry.as_dict() for entry in self.entries], "notes": self.notes}

    def text(self) -> str:
        parts = [_in_depth(entry) for entry in self.entries]
        for plugin, note in self.notes.items():
            parts.append(f"About {plugin}:\n{textwrap.indent(note, '    ')}")
        return "\n\n".join(parts)


def schema() -> dict[str, Any]:
    """The JSON schema of a config file, for editors."""
    return documentation.json_schema()


def listing() -> str:
    """Every key by section, a plug-in's options under its name."""
    lines = ["# Every key of a luthier config. `luthier config explain KEY` says more of one."]
    heading = None
    for entry in documentation.key_helps():
        section = entry.key.rpartition(".")[0]
        title = f"{section} (where {entry.valid_for.replace(' ', ' is ')})" if entry.valid_for else section
        if title != heading:
            lines += ["", f"# {title or 'top level'}"]
            heading = title
        lines.append(f"{entry.key}: {entry.default}")
        lines += textwrap.wrap(
            f"{entry.type}. {entry.description}", WIDTH, initial_indent="    # ", subsequent_indent="    # "
        )
    return "\n".join(lines)


def explain(key: str | None = None) -> Explanation:
    """What a key, a section or a plug-in (`method.lora`) means; without a key, the top level.

    Raises:
        UserError: there is no such key; names the nearest, or luthier's name for LLaMA-Factory's.
    """
    entries = documentation.key_helps()
    if not key:
        return Explanation("", tuple(entry for entry in entries if "." not in entry.key), {})
    key = ".".join("0" if part.isdigit() else part for part in key.split("."))
    choice, _, plugin = key.rpartition(".")
    if choice in CHOICES and plugin in CHOICES[choice][0].names():
        title = f"{choice} {plugin}"
        own = tuple(entry for entry in entries if entry.valid_for == title)
        return Explanation(key, own, {title: documentation.about_plugin(choice, plugin)})
    exact = [entry for entry in entries if entry.key == key]
    exact = exact or [entry for entry in entries if entry.key.split(".")[-1] == key]  # `seed` for training.seed
    inside = [entry for entry in entries if entry.key.startswith(f"{key}.") and not entry.valid_for]
    if not exact and not inside:
        raise _unknown(key, entries)
    plugins = [entry.valid_for for entry in exact if entry.valid_for]
    if key in CHOICES:
        plugins = [f"{key} {name}" for name in CHOICES[key][0].names()]
    notes = {plugin: documentation.about_plugin(*plugin.split(" ", 1)) for plugin in plugins}
    return Explanation(key, (*exact, *inside), notes)


def _unknown(key: str, entries: list[KeyHelp]) -> UserError:
    last = key.split(".")[-1]
    if named := luthiers_name(last, all_keys()):
        return UserError(f"there is no key {key!r}: LLaMA-Factory's {last} is {named} here.")
    if last in TRANSFORMERS:
        return UserError(f"there is no key {key!r}: transformers' {last} is {TRANSFORMERS[last]} here.")
    known = list(dict.fromkeys(entry.key for entry in entries))
    close = nearest(key, known) or [name for name in known if name.split(".")[-1] in nearest(last, _last_parts(known))]
    hint = f"Did you mean {' or '.join(close[:3])}?" if close else "`luthier config schema` lists them all."
    return UserError(f"there is no key {key!r}.", hint)


def _last_parts(keys: list[str]) -> list[str]:
    return [key.split(".")[-1] for key in keys]


def _in_depth(entry: KeyHelp) -> str:
    rows = [("takes", entry.type), ("default", entry.default), ("means", entry.description)]
    if entry.valid_for:
        rows.append(("valid", f"where {entry.valid_for.replace(' ', ' is ')}"))
    lines = [entry.key]
    for name, value in rows:
        lines += textwrap.wrap(value, WIDTH, initial_indent=f"    {name:<8}", subsequent_indent=" " * 12)
    return "\n".join(lines)
