"""Configs as YAML that people read: short forms, comments, numbers that YAML reads back as numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

WIDTH = 110


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


def flow(value: Any) -> str:
    """A value in one line of YAML."""
    text: str = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, sort_keys=False, allow_unicode=True, width=10_000
    )
    return text.removesuffix("...\n").strip()
