"""One turn of a sequence in tokens, and which of them remain where there is no room for all.

A turn is its source (what stands before an answer) and its answer. Of the source only the text of one message may be
cut: the system prompt, the template's own words and the opening of the answer stay, so what remains still has the form
in which the model will be asked. An answer keeps its beginning.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from luthier.data.piece_tokens import Piece, Place
from luthier.data.records import Message


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


def turn_tokens(
    pieces: Sequence[Piece], places: Sequence[Place], messages: Sequence[Message], first: int, answer: int, end: int
) -> TurnTokens:
    """The turn in `pieces[first:end]`, whose answer begins with piece `answer`.

    Args:
        places: where each token stands.
        messages: those of the turn's source, in their order.
    """
    owned = [place.piece for place in places]
    start, stop, last = (bisect_left(owned, piece) for piece in (first, answer, end))
    before = sum(len(piece.text) for piece in pieces[:first])
    text = "".join(piece.text for piece in pieces[first:answer])
    low, high = (before + place for place in _cuttable(text, messages))
    inside = [index for index in range(start, stop) if places[index].end > low and places[index].start < high]
    body = range(inside[0], inside[-1] + 1) if inside else range(stop, stop)
    return TurnTokens(range(start, body.start), body, range(body.stop, stop), range(stop, last))


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
