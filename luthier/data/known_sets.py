"""Well-known public data sets: what they hold, under which licence, and the config entry that reads them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import yaml
from pydantic import Field, TypeAdapter

from luthier.config.sections import Section


class KnownSet(Section):
    """A data set of the Hugging Face Hub, or one subset of it.

    `row` is an invented row with its columns.
    """

    id: str = Field(description="owner/name on the hub.")
    purpose: str = Field(description="What it teaches.")
    stage: str = Field(description="A stage that its rows fit.")
    format: str = Field(description="Its rows' format.")
    rows: int = Field(description="Rows of the split, roughly.")
    languages: tuple[str, ...] = Field(description="ISO 639 codes.")
    licence: str = Field(description="As its card says.")
    checked: bool = Field(False, description="Whether the licence was read from the hub for this list.")
    subset: str | None = None
    split: str = "train"
    columns: dict[str, str] = Field(default_factory=dict)
    note: str = ""
    row: dict[str, Any] = Field(description="An invented row with its columns.")

    @property
    def entry(self) -> dict[str, Any]:
        """What to write under data.train; the format only where the columns don't tell it."""
        entry: dict[str, Any] = {"path": self.id}
        if self.subset:
            entry["subset"] = self.subset
        if self.split != "train":
            entry["split"] = self.split
        if self.columns:
            entry |= {"format": self.format, "columns": self.columns}
        return entry

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {**self.model_dump(mode="json", exclude={"row"}), "entry": self.entry}


@cache
def known_sets() -> tuple[KnownSet, ...]:
    """All of them, as `known_sets.yaml` lists them."""
    text = resources.files("luthier.data").joinpath("known_sets.yaml").read_text(encoding="utf-8")
    return tuple(TypeAdapter(list[KnownSet]).validate_python(yaml.safe_load(text)))


def matching(words: Sequence[str]) -> list[KnownSet]:
    """The sets of which every word is a language (two letters), a stage, a format or a part of their name, purpose or note."""
    return [item for item in known_sets() if all(_fits(item, word.lower()) for word in words)]


def _fits(item: KnownSet, word: str) -> bool:
    if len(word) == 2:  # a language's code, which stands by chance in many a name
        return word in item.languages
    texts = (item.id, item.purpose, item.note, item.licence)
    return word in (*item.languages, item.stage, item.format) or any(word in text.lower() for text in texts)
