"""What a stream of examples gives, and where it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from luthier.data.examples import TokenizedExample


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stream goes on: `offset` examples of a window are taken."""

    window: int = 0
    offset: int = 0

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


@dataclass(frozen=True, slots=True)
class News:
    """What became of a window's rows, in the first epoch: lines for rejected.jsonl, and sentences for a person."""

    rejected: tuple[dict[str, Any], ...]
    sentences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Streamed:
    """An example and the place behind it; news stands alone, before its window's first example."""

    example: TokenizedExample | None
    after: Place
    news: News | None = None
