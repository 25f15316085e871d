"""The chat templates that come with luthier, by name: what the schema and help texts say of them, read from their files."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib import resources

FOLDER = "luthier.data.templates"
_UNVERIFIED = re.compile(r"verified:\s*no\s*-#\}")


def template_text(name: str) -> str:
    """A template's file."""
    return (resources.files(FOLDER) / f"{name}.jinja").read_text(encoding="utf-8")


def template_names() -> list[str]:
    """Their names, sorted."""
    files = resources.files(FOLDER).iterdir()
    return sorted(file.name.removesuffix(".jinja") for file in files if file.name.endswith(".jinja"))


@lru_cache
def template_list() -> str:
    """The names for help texts and messages, those marked that were checked against no public source."""
    marks = {name: " (unverified)" if _UNVERIFIED.search(template_text(name)) else "" for name in template_names()}
    return ", ".join(f"{name}{mark}" for name, mark in marks.items())
