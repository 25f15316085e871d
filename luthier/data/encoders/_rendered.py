"""What the encoders of rendered conversations share: render, tokenize many at a time, make fit, count."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Generic

from luthier.data.encoders._lengths import Cutter, LengthOptions, Rendered, Shortened, Talk, TurnLimits
from luthier.data.examples import Encoded, RecordLength, TokenizedExample, TokenSequence
from luthier.data.piece_tokens import Encoding, Piece
from luthier.data.records import Message, Origin, Pair, Record, Rejected, RowError
from luthier.foundation.errors import DataError

if TYPE_CHECKING:
    from luthier.data.rendering import Renderer

CONTROL_TOKENS = "special token spelled out in a message"
CUT_BEFORE_ANSWER = "cut before the first answer"
SHOWN_ROWS = 20


class RenderedEncoder(Generic[Talk]):
    """Encodes records of one kind as examples of one or more sequences.

    Args:
        kind: the records.
        render: a record's sequences as text; raises `RowError`.
        extras: numbers of a record that the stage needs.
        learns_last: what is learnt is the end of a record (see `Cutter`).
        limits: separate limits for the source and the answer of every turn, instead of `over_length`.
    """

    def __init__(
        self,
        kind: type[Talk],
        renderer: Renderer,
        options: LengthOptions,
        render: Callable[[Talk], list[Rendered]],
        *,
        extras: Callable[[Talk], Mapping[str, float]] = lambda record: {},
        learns_last: bool = True,
        limits: TurnLimits | None = None,
    ) -> None:
        self._kind = kind
        self._renderer = renderer
        self._options = options
        self._render = render
        self._extras = extras
        self._limits = limits
        self._cutter = Cutter(render, renderer, options.cutoff_length, learns_last=learns_last)

    def __call__(self, records: Sequence[Record]) -> Encoded:
        """The records as examples.

        Raises:
            DataError: records are too long, under `over_length: error`.
            TypeError: a record is of another kind; formats and encoders were put together wrongly.
        """
        encoded = Encoded()
        rendered: list[list[Piece]] = []
        kept: list[tuple[Talk, int]] = []
        for record in self._of_kind(records):
            try:
                sequences = self._render(record)
            except RowError as error:
                encoded.rejected.append(_rejected(record, error))
                continue
            rendered.extend(sequence.pieces for sequence in sequences)
            kept.append((record, len(sequences)))
            encoded.findings.update(record.notes)
            if self._renderer.holds_control_tokens(_messages(record)):
                encoded.findings[CONTROL_TOKENS] += 1
        too_long: list[tuple[Origin, int]] = []
        encodings = iter(self._renderer.encode_pieces(rendered))
        for record, count in kept:
            found = list(islice(encodings, count))
            longest = max(len(ids) for ids, _ in found)
            if longest <= self._fits:
                encoded.examples.append(self._example(record, _whole(found), sum(len(ids) for ids, _ in found)))
                encoded.lengths.append(RecordLength(record.origin, longest))
            elif self._options.over_length in ("drop", "error"):
                too_long.append((record.origin, longest))
                encoded.lengths.append(RecordLength(record.origin, longest, examples=0))
            else:
                self._add_cut(encoded, record, found)
        if too_long and self._options.over_length == "error":
            raise _over_length(too_long, self._options.cutoff_length)
        return encoded

    def _of_kind(self, records: Sequence[Record]) -> Iterator[Talk]:
        for record in records:
            if not isinstance(record, self._kind):
                raise TypeError(f"a {type(record).__name__} among records that must be {self._kind.__name__}")
            yield record

    @property
    def _fits(self) -> int:
        """The longest sequence that surely needs no cut."""
        cutoff = self._options.cutoff_length
        return cutoff if self._limits is None else min(cutoff, self._limits.source, self._limits.target)

    def _example(self, record: Talk, sequences: tuple[TokenSequence, ...], length: int) -> TokenizedExample:
        return TokenizedExample(sequences, record.origin, length, self._extras(record))

    def _add_cut(self, encoded: Encoded, record: Talk, found: Sequence[Encoding]) -> None:
        """Add the examples that a cut makes of a record, and count what it did."""
        lengths = [len(ids) for ids, _ in found]
        self._cutter.begin(record, found)
        try:
            parts = self._shortened(record)
        except RowError as error:
            encoded.rejected.append(_rejected(record, error))
            return
        learnable = any(weight > 0 for _, weights in found for weight in weights)
        if not learnable and not all(part.sequences for part in parts):
            encoded.lengths.append(RecordLength(record.origin, max(lengths), examples=0))
            return
        encoded.lengths.append(RecordLength(record.origin, max(lengths), len(parts)))
        made = []
        for part in parts:
            sequences = _trained_together(part.sequences or _context(found, self._options.cutoff_length))
            made.append(self._example(record, sequences, sum(lengths) if len(parts) == 1 else part.length))
            encoded.findings.update(part.how)
            if part.answer_cut and made[-1].targets:
                encoded.unfinished.append(record.origin)
        if learnable and not any(example.targets for example in made):
            encoded.findings[CUT_BEFORE_ANSWER] += 1
        encoded.examples += made

    def _shortened(self, record: Talk) -> list[Shortened]:
        if self._limits is not None:
            return [self._cutter.limit_turns(record, self._limits)]
        if self._options.over_length == "split":
            return self._cutter.split(record)
        if self._options.over_length == "truncate_left":
            return [self._cutter.truncate_left(record)]
        return [self._cutter.truncate(record)]


def last_answers(pieces: Sequence[Piece], count: int = 1) -> Rendered:
    """Rendered pieces of which only the last `count` assistant turns have a loss."""
    answers = tuple(index for index, piece in enumerate(pieces) if piece.weight is not None)
    context = set(answers[: max(len(answers) - count, 0)])
    weighted = [replace(piece, weight=0.0) if index in context else piece for index, piece in enumerate(pieces)]
    return Rendered(weighted, answers[len(context) :])


def _messages(record: Talk) -> tuple[Message, ...]:
    """All turns of a record."""
    return (*record.prompt, *record.chosen, *record.rejected) if isinstance(record, Pair) else record.messages


def _rejected(record: Talk, error: RowError) -> Rejected:
    turns = [message.as_dict() for message in _messages(record)]
    return Rejected(record.origin, str(error), {"messages": turns})


def _whole(found: Sequence[Encoding]) -> tuple[TokenSequence, ...]:
    return _trained_together(tuple(TokenSequence(tuple(ids), tuple(weights)) for ids, weights in found))


def _context(found: Sequence[Encoding], cutoff: int) -> tuple[TokenSequence, ...]:
    """The first tokens of sequences that can't be made to fit, none of them trained."""
    shown = [ids[:cutoff] for ids, _ in found]
    return tuple(TokenSequence(tuple(ids), (0.0,) * len(ids)) for ids in shown)


def _trained_together(sequences: tuple[TokenSequence, ...]) -> tuple[TokenSequence, ...]:
    """The sequences; of a pair with nothing to learn in one answer, neither is trained."""
    if all(sequence.targets for sequence in sequences):
        return sequences
    return tuple(TokenSequence(sequence.input_ids, (0.0,) * len(sequence.input_ids)) for sequence in sequences)


def _over_length(too_long: Sequence[tuple[Origin, int]], cutoff: int) -> DataError:
    rows = "\n".join(f"  - {origin}: {length} tokens" for origin, length in too_long[:SHOWN_ROWS])
    more = f"\n  and {len(too_long) - SHOWN_ROWS} more" if len(too_long) > SHOWN_ROWS else ""
    return DataError(
        f"{len(too_long)} rows are longer than data.cutoff_length ({cutoff} tokens), and data.over_length is error:\n{rows}{more}",
        f"Raise data.cutoff_length to {max(length for _, length in too_long)}, or set data.over_length to truncate or drop.",
    )
