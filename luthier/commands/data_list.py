"""`luthier data list`: well-known public data sets, and how to name them in a config."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from luthier.data.known_sets import KnownSet, known_sets, matching
from luthier.foundation.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(frozen=True)
class ListedSets:
    """The sets that were asked for."""

    sets: tuple[KnownSet, ...]

    def as_dict(self) -> dict[str, Any]:
        return {"sets": [item.as_dict() for item in self.sets]}


def list_sets(words: Sequence[str], console: Console) -> ListedSets:
    """Print the sets that fit all words.

    Raises:
        UserError: none does.
    """
    found = matching(words)
    if not found:
        purposes = ", ".join(dict.fromkeys(item.purpose for item in known_sets()))
        languages = ", ".join(dict.fromkeys(code for item in known_sets() for code in item.languages))
        raise UserError(
            f"no data set of the list fits {' '.join(words)!r}.",
            f"Purposes: {purposes}. Languages: {languages}. Any other set of the hub is read by its id, too.",
        )
    for item in found:
        _print(item, console)
    if not all(item.checked for item in found):
        console.print("(?): this licence was not read anew for the list; look at the set's card.", soft_wrap=True)
    return ListedSets(tuple(found))


def _print(item: KnownSet, console: Console) -> None:
    licence = item.licence if item.checked else f"{item.licence} (?)"
    parts = [item.purpose, f"stage {item.stage}", f"format {item.format}", f"{item.rows:,} rows"]
    parts += ["/".join(item.languages), f"licence {licence}", *([item.note] if item.note else [])]
    console.print(f"{item.id}: {'; '.join(parts)}", markup=False, soft_wrap=True)
    written = yaml.safe_dump(item.entry, default_flow_style=True, sort_keys=False, width=1000, allow_unicode=True)
    entry = item.id if set(item.entry) == {"path"} else written.strip()
    console.print(f"    train: {entry}", style="dim", markup=False, soft_wrap=True)
