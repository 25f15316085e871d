"""What becomes of each key, and what a rule gets to see."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from luthier.config.migration.table import ABSENT, Key, table

Status = Literal["mapped", "changed", "refused"]
Work = Literal["train", "predict", "export", "chat", "serve", "evaluate", "webui"]


@dataclass(frozen=True)
class Answer:
    """What a key becomes.

    Args:
        settings: luthier's keys and values.
        flags: words of the command line.
        note: how the meaning changes, why it is refused, or what to know.
        wrong: LLaMA-Factory would refuse it too: a misspelt key or value.
    """

    status: Status
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    flags: tuple[str, ...] = ()
    wrong: bool = False


def mapped(settings: Mapping[str, Any] | None = None, note: str = "", flags: tuple[str, ...] = ()) -> Answer:
    """The same in luthier."""
    return Answer("mapped", settings or {}, note, flags)


def changed(settings: Mapping[str, Any] | None, note: str, flags: tuple[str, ...] = ()) -> Answer:
    """Taken over, with another meaning."""
    return Answer("changed", settings or {}, note, flags)


def refused(note: str, *, wrong: bool = False) -> Answer:
    """Not taken over."""
    return Answer("refused", {}, note, (), wrong)


@dataclass(frozen=True)
class Outcome:
    """A key of the config with what became of it."""

    key: str
    value: Any
    status: Status
    luthier: Mapping[str, Any]
    note: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Case:
    """A config as the rules see it.

    Args:
        given: the keys that were given, under their current names, with values of the right kind.
        old: whether it is of the version that DB-GPT-Hub carries, whose defaults are others.
        work: what it does.
        before_0_9: whether it is of a LLaMA-Factory that cut rows at 1,024 tokens unless told otherwise.
    """

    given: Mapping[str, Any]
    old: bool
    work: Work
    before_0_9: bool = False

    def default(self, key: str) -> Any:
        """What a key is there when it is not given; ABSENT where that is nothing to write."""
        row: Key = table().keys[key]
        return row.old if self.old and row.old != ABSENT else row.default

    def value(self, key: str) -> Any:
        """What a key is there, given or not."""
        found = self.given.get(key)
        if found is not None:
            return found
        default = self.default(key)
        return None if default == ABSENT else default

    def acts(self, key: str) -> str:
        """Empty where a key acts there; else which setting keeps it, or one that it needs, from acting."""
        for needed, values in table().keys[key].needs.items():
            wanted = values if isinstance(values, list) else [values]
            if self.value(needed) not in wanted:
                return f"{needed} is {_shown(self.value(needed))}"
            if why := self.acts(needed):
                return why
        return ""


def _shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)


def names(value: Any) -> list[str]:
    """A list, or names with commas between them."""
    parts = value.split(",") if isinstance(value, str) else value
    return [str(part).strip() for part in parts if str(part).strip()]
