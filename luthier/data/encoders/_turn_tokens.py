"""One turn of a sequence in tokens, and which of them remain where there is no room for all.

A turn is its source (what stands before an answer) and its answer. Of the source only the text of one message may be
cut: the system prompt, the template's own words and the opening of the answer stay, so what remains still has the form
in which the model will be asked. An answer keeps its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, islice
from typing import TYPE_CHECKING, NamedTuple

from luthier.data.piece_tokens import Piece
from luthier.data.records import Message

if TYPE_CHECKING:
    from luthier.data.rendering import Renderer


@dataclass(frozen=True, slots=True)
class TurnTokens:
    """A turn as ranges of a sequence's token indices, end to end.

    Args:
        head, tail: of the source, what is never cut.
        body: the tokens between them, of the message that may be cut.
        answer: the tokens that follow the source.
    """

    head: range
    body: range
    tail: range
    answer: range

    @property
    def source(self) -> int:
        """Tokens before the answer."""
        return len(self.head) + len(self.body) + len(self.tail)

    @property
    def fixed(self) -> int:
        """Tokens of the source that are never cut."""
        return len(self.head) + len(self.tail)

    def keep(self, sources: int, targets: int, *, from_left: bool) -> list[int]:
        """The indices that remain of at most `sources` (but the fixed ones always) and `targets` tokens.

        Args:
            from_left: cut away the body's beginning rather than its end.
        """
        room = max(sources - self.fixed, 0)
        body = self.body[max(len(self.body) - room, 0) :] if from_left else self.body[:room]
        return [*self.head, *body, *self.tail, *self.answer[:targets]]


class TurnPlaces(NamedTuple):
    """A turn in the text of a sequence, in characters: its source, what of it may be cut, and its answer."""

    start: int
    cut_from: int
    cut_to: int
    answer: int
    end: int

    @classmethod
    def of(cls, pieces: Sequence[Piece], messages: Sequence[Message], first: int, answer: int, end: int) -> TurnPlaces:
        """The turn in `pieces[first:end]`, whose answer begins with piece `answer`; `messages` are its source's."""
        lengths = list(accumulate((len(piece.text) for piece in pieces), initial=0))
        low, high = _cuttable("".join(piece.text for piece in pieces[first:answer]), messages)
        start = lengths[first]
        return cls(start, start + low, start + high, lengths[answer], lengths[end])


def turns_in_tokens(
    renderer: Renderer, pieces: Sequence[Piece], turns: Sequence[TurnPlaces], length: int
) -> list[TurnTokens]:
    """Turns of a sequence of `length` tokens, which may end before its pieces do."""
    counted = iter(renderer.count_tokens(pieces, [position for turn in turns for position in turn]))
    found = []
    for _ in turns:
        start, cut_from, cut_to, answer, end = islice(counted, len(TurnPlaces._fields))
        low = min(cut_from.ended, answer.ended)
        high = min(max(cut_to.started, low), answer.ended)
        source = (range(start.ended, low), range(low, high), range(high, answer.ended))
        found.append(TurnTokens(*source, range(answer.ended, min(end.ended, length))))
    return found


def share_of_room(source: int, target: int, room: int) -> tuple[int, int]:
    """How many tokens of a source and of a target `room` tokens hold, in proportion.

    The rule of LLaMA-Factory's cutoff_len: a target shorter than half the room stays whole, else a source shorter than
    half of it does; where both are long, each gets its share.
    """
    if target * 2 < room:
        most = room
    elif source * 2 < room:
        most = room - source
    else:
        most = int(room * (target / (source + target)))
    targets = min(target, most)
    return min(source, max(room - targets, 0)), targets


def _cuttable(text: str, messages: Sequence[Message]) -> tuple[int, int]:
    """The characters of a source that may be cut: the longest of its messages, but no system prompt.

    A template that writes messages in a way of its own (a tool's result as JSON) hides them; then it is all behind
    the system prompt.
    """
    found: list[tuple[int, int]] = []
    position = system_end = 0
    for message in messages:
        content = message.content.strip()
        start = text.find(content, position) if content else -1
        if start < 0:
            continue
        position = start + len(content)
        if message.role == "system":
            system_end = position
        else:
            found.append((start, position))
    return max(found, key=lambda place: place[1] - place[0]) if found else (system_end, len(text))
