"""What the encoders of rendered conversations share: render, tokenize many at a time, cut, count."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import Field

from luthier.config.sections import PluginOptions
from luthier.data.examples import Encoded, TokenizedExample, TokenSequence
from luthier.data.piece_tokens import Encoding, Piece
from luthier.data.records import Conversation, LabelledConversation, Message, Origin, Pair, Record, Rejected, RowError
from luthier.foundation.errors import DataError

if TYPE_CHECKING:
    from luthier.data.rendering import Renderer

CONTROL_TOKENS = "special token spelled out in a message"
CUT_BEFORE_ANSWER = "cut before the first answer"
SHOWN_ROWS = 20

Talk = TypeVar("Talk", Conversation, LabelledConversation, Pair)


class LengthOptions(PluginOptions):
    """Lengths."""

    cutoff_length: int = Field(1024, ge=2, description="Longest sequence, in tokens.")
    over_length: Literal["truncate", "drop", "error"] = Field(
        "truncate", description="What happens to longer examples."
    )


def all_of(records: Sequence[Record], kind: type[Talk]) -> list[Talk]:
    """The records, which must all be of one kind.

    Raises:
        TypeError: one is not; formats and encoders were put together wrongly.
    """
    found = [record for record in records if isinstance(record, kind)]
    if len(found) != len(records):
        raise TypeError(f"only {len(found)} of {len(records)} records are a {kind.__name__}")
    return found


def encode_rendered(
    records: Sequence[Talk],
    renderer: Renderer,
    options: LengthOptions,
    sequences_of: Callable[[Talk], list[list[Piece]]],
    messages_of: Callable[[Talk], Sequence[Message]],
    extras_of: Callable[[Talk], Mapping[str, float]] = lambda record: {},
) -> Encoded:
    """Records as examples of one or more sequences each.

    Args:
        sequences_of: a record's rendered sequences; raises `RowError`.
        messages_of: all turns of a record, for what is reported about them.

    Raises:
        DataError: records are too long, under `over_length: error`.
    """
    encoded = Encoded()
    rendered: list[list[Piece]] = []
    kept: list[tuple[Talk, int]] = []
    for record in records:
        try:
            sequences = sequences_of(record)
        except RowError as error:
            turns = [message.as_dict() for message in messages_of(record)]
            encoded.rejected.append(Rejected(record.origin, str(error), {"messages": turns}))
            continue
        rendered.extend(sequences)
        kept.append((record, len(sequences)))
        encoded.findings.update(record.notes)
        if renderer.holds_control_tokens(messages_of(record)):
            encoded.findings[CONTROL_TOKENS] += 1
    too_long: list[tuple[Origin, int]] = []
    stops = frozenset(renderer.stop_token_ids)
    encodings = iter(renderer.encode_pieces(rendered))
    for record, count in kept:
        found = list(islice(encodings, count))
        longest = max(len(ids) for ids, _ in found)
        if longest > options.cutoff_length and options.over_length != "truncate":
            too_long.append((record.origin, longest))
            continue
        _add(encoded, _example(found, record.origin, options.cutoff_length, extras_of(record)), stops)
    if too_long and options.over_length == "error":
        raise _over_length(too_long, options.cutoff_length)
    encoded.dropped = [origin for origin, _ in too_long]
    return encoded


def train_last_only(pieces: Sequence[Piece], count: int = 1) -> list[Piece]:
    """The same pieces with a loss on the last `count` assistant turns only."""
    answers = [index for index, piece in enumerate(pieces) if piece.weight is not None]
    context = set(answers[: max(len(answers) - count, 0)])
    return [replace(piece, weight=0.0) if index in context else piece for index, piece in enumerate(pieces)]


def _example(found: Sequence[Encoding], origin: Origin, cutoff: int, extras: Mapping[str, Any]) -> TokenizedExample:
    """An example of sequences of at most `cutoff` tokens; of a pair with one answer cut away, neither is trained."""
    sequences = tuple(_cut(ids, weights, cutoff) for ids, weights in found)
    if not all(sequence.targets for sequence in sequences):
        sequences = tuple(TokenSequence(sequence.input_ids, (0.0,) * len(sequence.input_ids)) for sequence in sequences)
    return TokenizedExample(sequences, origin, sum(len(ids) for ids, _ in found), extras)


def _cut(ids: list[int], weights: list[float], cutoff: int) -> TokenSequence:
    """At most `cutoff` tokens; context behind the last remaining target goes too."""
    if len(ids) > cutoff:
        end = cutoff
        while end and weights[end - 1] == 0:
            end -= 1
        end = end or cutoff
        ids, weights = ids[:end], weights[:end]
    return TokenSequence(tuple(ids), tuple(weights))


def _add(encoded: Encoded, example: TokenizedExample, stops: frozenset[int]) -> None:
    encoded.examples.append(example)
    if not example.truncated:
        return
    if not example.targets:
        encoded.findings[CUT_BEFORE_ANSWER] += 1
    elif any(sequence.input_ids[-1] not in stops for sequence in example.sequences):
        encoded.unfinished += 1


def _over_length(too_long: Sequence[tuple[Origin, int]], cutoff: int) -> DataError:
    rows = "\n".join(f"  - {origin}: {length} tokens" for origin, length in too_long[:SHOWN_ROWS])
    more = f"\n  and {len(too_long) - SHOWN_ROWS} more" if len(too_long) > SHOWN_ROWS else ""
    return DataError(
        f"{len(too_long)} rows are longer than data.cutoff_length ({cutoff} tokens), and data.over_length is error:\n{rows}{more}",
        f"Raise data.cutoff_length to {max(length for _, length in too_long)}, or set data.over_length to truncate or drop.",
    )
