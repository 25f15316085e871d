"""Rows that are too long: the settings, and what is made of such a row.

An exchange is a question with all that answers it, tool calls and their results included. What a cut leaves is rendered
anew from whole turns wherever turns can go whole, so a template sees an ordinary conversation; only in a turn that is
too long by itself tokens are cut.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

from pydantic import Field, model_validator

from luthier.config.sections import PluginOptions
from luthier.data.encoders._turn_tokens import TurnPlaces, TurnTokens, share_of_room, turns_in_tokens
from luthier.data.examples import TokenSequence
from luthier.data.piece_tokens import Encoding, Piece
from luthier.data.records import Conversation, LabelledConversation, Message, Pair

if TYPE_CHECKING:
    from luthier.data.rendering import Renderer

TURNS_LEFT_OUT = "too long: whole turns left out"
CUT_INSIDE = "too long: a question or an answer cut"
SPLIT = "too long: split into several examples"

Talk = TypeVar("Talk", bound=Conversation | LabelledConversation | Pair)


class LengthOptions(PluginOptions):
    """Lengths."""

    CANNOT_SPLIT: ClassVar[str] = "the last answer, all that is learnt, is in one piece"

    cutoff_length: int = Field(1024, ge=2, description="Longest sequence, in tokens.")
    over_length: Literal["truncate", "truncate_left", "drop", "split", "error"] = Field(
        "truncate", description="What happens to longer rows."
    )

    @model_validator(mode="after")
    def _can_split(self) -> LengthOptions:
        if self.over_length == "split" and self.CANNOT_SPLIT:
            raise ValueError(
                f"data.over_length is split, but {self.CANNOT_SPLIT}; use truncate, truncate_left, drop or error"
            )
        return self


@dataclass(frozen=True, slots=True)
class TurnLimits:
    """Separate limits for the source and the answer of every turn, in tokens."""

    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Rendered:
    """One sequence of a record as text.

    Args:
        pieces: with their loss weights.
        answers: which pieces are answers that a cut makes room for, in order.
    """

    pieces: list[Piece]
    answers: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shortened:
    """What a cut made of a record.

    Args:
        sequences: its sequences; none where not even the parts that are never cut fit.
        length: tokens before anything inside of turns was cut.
        answer_cut: whether a trained answer lost its end.
        how: what was done, for the report.
    """

    sequences: tuple[TokenSequence, ...]
    length: int
    answer_cut: bool = False
    how: tuple[str, ...] = ()


def turns_of(record: Talk) -> tuple[Message, ...]:
    """The turns that may be left out to save room: all of a conversation, the prompt of a pair."""
    return record.prompt if isinstance(record, Pair) else record.messages


def with_turns(record: Talk, turns: Sequence[Message]) -> Talk:
    """The same record with other turns."""
    if isinstance(record, Pair):
        return replace(record, prompt=tuple(turns))
    return replace(record, messages=tuple(turns))


class Cutter(Generic[Talk]):
    """Makes records that are too long fit.

    Args:
        render: a record's sequences as text; raises `RowError`.
        cutoff: the longest sequence, in tokens.
        learns_last: what is learnt is the end of a record, so only what is before it may be left out.
    """

    def __init__(
        self, render: Callable[[Talk], list[Rendered]], renderer: Renderer, cutoff: int, *, learns_last: bool
    ) -> None:
        self._render_anew = render
        self._renderer = renderer
        self._cutoff = cutoff
        self._learns_last = learns_last
        # of the record at hand, by its turns: several attempts look at the same ones
        self._rendered: dict[tuple[int, ...], list[Rendered]] = {}
        self._encoded: dict[tuple[int, ...], list[Encoding]] = {}

    def begin(self, record: Talk, encodings: Sequence[Encoding]) -> None:
        """Turn to a record, of which the tokens are known; what was known of the one before it is let go."""
        self._rendered.clear()
        self._encoded = {_key(record): list(encodings)}

    def truncate(self, record: Talk) -> Shortened:
        """The turns up to the last answer that fits; or the last exchanges, where only they have something to learn."""
        if not self._learns_last:
            useful = self._up_to_last_trained(record)
            made = self._made(record, self._first_turns(useful))
            if any(sequence.targets for sequence in made.sequences) or useful is record:
                return made
            record = useful
        return self._made(record, self._last_exchanges(record))

    def truncate_left(self, record: Talk) -> Shortened:
        """The system prompt and the last exchanges, as many as fit."""
        return self._made(record, self._last_exchanges(self._up_to_last_trained(record)), from_left=True)

    def split(self, record: Talk) -> list[Shortened]:
        """Consecutive exchanges, as many in each example as fit, after the system prompt in each."""
        system, exchanges = _exchanges(turns_of(self._up_to_last_trained(record)))
        found: list[Shortened] = []
        while exchanges:
            nearest = [with_turns(record, (*system, *_joined(exchanges[:count]))) for count in _up_to(len(exchanges))]
            fitting = max(self._how_many_fit(nearest), 1)
            part = nearest[fitting - 1]
            found.append(self._made(part, self._first_turns(part)))
            exchanges = exchanges[fitting:]
        if len(found) > 1:
            found[0] = replace(found[0], how=(SPLIT, *found[0].how))
        return found

    def limit_turns(self, record: Talk, limits: TurnLimits) -> Shortened:
        """Every turn within its limits; turns that then do not fit into the cutoff are left out, with all behind them.

        The rule of DB-GPT-Hub's max_source_length and max_target_length.
        """
        (rendered,) = self._render(record)
        ((ids, weights),) = self._encode(record)
        turns = self._turns(rendered, turns_of(record), len(ids))
        kept: list[int] = []
        fitting, cut, answer_cut = 0, False, False
        for turn in turns:
            part = turn.keep(limits.source, limits.target, from_left=False)
            if turn.fixed > limits.source or len(kept) + len(part) > self._cutoff:
                break
            kept += part
            fitting += 1
            cut |= len(part) < turn.source + len(turn.answer)
            answer_cut |= len(turn.answer) > limits.target and weights[turn.answer.start] > 0
        if not fitting:
            return Shortened((), len(ids))
        if fitting < len(turns):
            # a template may treat the last turn in a way of its own, so what remains is rendered anew
            fewer = with_turns(record, turns_of(record)[: _answer_ends(turns_of(record))[fitting - 1]])
            found = self.limit_turns(fewer, limits)
            return replace(found, length=len(ids), how=tuple(dict.fromkeys((TURNS_LEFT_OUT, *found.how))))
        return Shortened((_taken(ids, weights, kept),), len(ids), answer_cut, (CUT_INSIDE,) if cut else ())

    def _up_to_last_trained(self, record: Talk) -> Talk:
        """The record without the turns behind its last trained answer: they would take room and teach nothing."""
        if self._learns_last:
            return record
        (rendered,) = self._render(record)
        last = max((index for index, piece in enumerate(rendered.pieces) if piece.trained), default=-1)
        if last not in rendered.answers:
            return record
        end = _answer_ends(turns_of(record))[rendered.answers.index(last)]
        return with_turns(record, turns_of(record)[:end])

    def _first_turns(self, record: Talk) -> Talk:
        """The turns up to the last answer that fits, at least up to the first."""
        turns = turns_of(record)
        shorter = [with_turns(record, turns[:end]) for end in _answer_ends(turns)]
        return shorter[max(self._how_many_fit(shorter), 1) - 1]

    def _last_exchanges(self, record: Talk) -> Talk:
        """The system prompt and as many of the last exchanges as fit, at least one."""
        system, exchanges = _exchanges(turns_of(record))
        shorter = [with_turns(record, (*system, *_joined(exchanges[-count:]))) for count in _up_to(len(exchanges))]
        fitting = self._how_many_fit(shorter)
        if fitting or self._learns_last:
            return shorter[max(fitting, 1) - 1]
        return self._first_turns(shorter[0])  # its calls and answers are learnt in their order

    def _how_many_fit(self, growing: Sequence[Talk]) -> int:
        """How many of records, each longer than the one before it, fit."""
        return bisect_right(growing, self._cutoff, key=lambda record: max(len(ids) for ids, _ in self._encode(record)))

    def _render(self, record: Talk) -> list[Rendered]:
        key = _key(record)
        if key not in self._rendered:
            self._rendered[key] = self._render_anew(record)
        return self._rendered[key]

    def _encode(self, record: Talk) -> list[Encoding]:
        key = _key(record)
        if key not in self._encoded:
            pieces = [rendered.pieces for rendered in self._render(record)]
            self._encoded[key] = self._renderer.encode_pieces(pieces)
        return self._encoded[key]

    def _made(self, record: Talk, fewer: Talk, *, from_left: bool = False) -> Shortened:
        """A record of fewer turns as an example, its only turn cut inside where it does not fit."""
        how = (TURNS_LEFT_OUT,) if len(turns_of(fewer)) < len(turns_of(record)) else ()
        length = sum(len(ids) for ids, _ in self._encode(record))
        encodings = self._encode(fewer)
        if max(len(ids) for ids, _ in encodings) <= self._cutoff:
            whole = tuple(TokenSequence(tuple(ids), tuple(weights)) for ids, weights in encodings)
            return Shortened(whole, length, how=how)
        cut = self._cut_inside(fewer, encodings, from_left=from_left)
        return replace(cut, length=length, how=(*how, CUT_INSIDE) if cut.sequences else ())

    def _cut_inside(self, record: Talk, encodings: Sequence[Encoding], *, from_left: bool) -> Shortened:
        """Source and answer, each with its share of the room; of a pair both prompts alike."""
        turns = [
            self._turn(rendered, turns_of(record), len(ids))
            for rendered, (ids, _) in zip(self._render(record), encodings, strict=True)
        ]
        targets = max(len(turn.answer) for turn in turns)
        sources, room = share_of_room(max(turn.source for turn in turns), targets, self._cutoff)
        sources = max(sources, *(turn.fixed for turn in turns))
        room = min(room, self._cutoff - sources)
        if room < min(targets, 1):
            return Shortened((), 0)
        sequences = tuple(
            _taken(ids, weights, turn.keep(sources, room, from_left=from_left))
            for turn, (ids, weights) in zip(turns, encodings, strict=True)
        )
        answer_cut = any(
            len(turn.answer) > room and self._cuts_an_answer(rendered, turn.answer.start + room)
            for rendered, turn in zip(self._render(record), turns, strict=True)
        )
        return Shortened(sequences, 0, answer_cut)

    def _cuts_an_answer(self, rendered: Rendered, kept: int) -> bool:
        """Whether the first `kept` tokens of a sequence end inside a trained answer.

        They may as well end behind its stop token: in a tool's result, or in what a template writes between turns.
        """
        lengths = list(accumulate((len(piece.text) for piece in rendered.pieces), initial=0))
        trained = [index for index in rendered.answers if rendered.pieces[index].trained]
        places = [lengths[index + end] for index in trained for end in (0, 1)]
        counted = [count.ended for count in self._renderer.count_tokens(rendered.pieces, places)]
        return any(start < kept < end for start, end in zip(counted[::2], counted[1::2], strict=True))

    def _turn(self, rendered: Rendered, messages: Sequence[Message], length: int) -> TurnTokens:
        """A sequence of `length` tokens as one turn: all up to the first answer, and what follows."""
        pieces = rendered.pieces
        answer = rendered.answers[0] if rendered.answers else len(pieces)
        place = TurnPlaces.of(pieces, messages, 0, answer, len(pieces))
        return turns_in_tokens(self._renderer, pieces, [place], length)[0]

    def _turns(self, rendered: Rendered, messages: Sequence[Message], length: int) -> list[TurnTokens]:
        """A sequence of `length` tokens as its turns, one for each answer."""
        places, first, before = [], 0, 0
        for answer, end in zip(rendered.answers, _answer_ends(messages), strict=True):
            source = messages[before : end - 1]
            places.append(TurnPlaces.of(rendered.pieces, source, first, answer, answer + 1))
            first, before = answer + 1, end
        found = turns_in_tokens(self._renderer, rendered.pieces, places, length)
        return [turn for turn in found if turn.answer]


def _key(record: Talk) -> tuple[int, ...]:
    return tuple(map(id, turns_of(record)))


def _up_to(count: int) -> range:
    return range(1, count + 1)


def _answer_ends(turns: Sequence[Message]) -> list[int]:
    """Where a conversation may end: behind each of its answers."""
    return [index for index, turn in enumerate(turns, 1) if turn.role == "assistant"]


def _exchanges(turns: Sequence[Message]) -> tuple[Sequence[Message], list[Sequence[Message]]]:
    """The system prompt (or nothing), and the turns from each question up to the next."""
    starts = [index for index, turn in enumerate(turns) if turn.role == "user"]
    ends = [*starts[1:], len(turns)]
    return turns[: starts[0]], [turns[start:end] for start, end in zip(starts, ends, strict=True)]


def _joined(exchanges: Sequence[Sequence[Message]]) -> list[Message]:
    return [turn for exchange in exchanges for turn in exchange]


def _taken(ids: Sequence[int], weights: Sequence[float], kept: Sequence[int]) -> TokenSequence:
    """The tokens at `kept`; context behind the last target would cost computation and teach nothing."""
    last = max((place for place, index in enumerate(kept) if weights[index] > 0), default=len(kept) - 1)
    kept = kept[: last + 1]
    # nothing predicts the first token
    losses = (0.0, *(weights[index] for index in kept[1:]))
    return TokenSequence(tuple(ids[index] for index in kept), losses)
