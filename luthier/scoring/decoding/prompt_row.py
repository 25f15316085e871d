"""Prompts laid end to end in one row, each beginning once, for a pass that computes their keys and values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from luthier.scoring.decoding.passes import Below, Stretch
from luthier.scoring.decoding.store import Beginning


class PromptRow:
    """A row that grows by answers, which come depth first.

    Args:
        tokens: of every beginning. One that is computed already is not laid down again.

    Attributes:
        ids, positions: of the row's tokens. stretches, below: see `luthier.scoring.decoding.passes.Prefill`; `below` is
            whole after `finish`.
        ends: where the beginnings that are laid down here end.
    """

    def __init__(self, tokens: Mapping[Beginning, Sequence[int]]) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.stretches: list[Stretch] = []
        self.below: list[Below] = []
        self.ends: dict[Beginning, int] = {}
        self._tokens = tokens
        self._open: list[tuple[Beginning, int]] = []  # the last answer's chain, and where the rows below each begin

    def added_by(self, beginning: Beginning | None, own: Sequence[int]) -> int:
        """How many tokens an answer would add."""
        chain = beginning.chain() if beginning is not None else []
        return len(own) + sum(one.count for one in chain if not one.is_computed and one not in self.ends)

    def add(self, beginning: Beginning | None, own: Sequence[int], slot: int) -> int | None:
        """Lay an answer's prompt down; the place of its last token, None where that was computed before."""
        chain = beginning.chain() if beginning is not None else []
        common = sum(1 for (old, _), now in zip(self._open, chain, strict=False) if old is now)
        self._close(common)
        before = sum(one.count for one in chain[:common])
        for one in chain[common:]:
            if not one.is_computed:
                self._lay_down(self._tokens[one], one, before)
                self.ends[one] = len(self.ids) - 1
            self._open.append((one, len(self.ids)))
            before += one.count
        if own:
            self._lay_down(own, slot, before)
            return len(self.ids) - 1
        return self.ends.get(chain[-1])

    def finish(self) -> None:
        """No answer comes any more."""
        self._close(0)

    def _lay_down(self, tokens: Sequence[int], into: Beginning | int, before: int) -> None:
        start = len(self.ids)
        self.ids += tokens
        self.positions += range(before, before + len(tokens))
        self.stretches.append(Stretch(start, len(self.ids), into))

    def _close(self, kept: int) -> None:
        """Let the row's end be the end of what goes on with the deeper beginnings."""
        while len(self._open) > kept:
            one, start = self._open.pop()
            if len(self.ids) > start:
                self.below.append(Below(start, len(self.ids), one))
