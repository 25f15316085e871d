"""Conversations as one sequence each: loss on the assistant's turns, their stop tokens included."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.config.schema import PluginOptions
from luthier.data.examples import Encoded, TokenizedExample, TokenSequence
from luthier.data.piece_tokens import Piece
from luthier.data.records import Conversation, Origin, Record, Rejected, RowError
from luthier.foundation.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

RECORD = Conversation
NEEDS_TEMPLATE = True
CONTROL_TOKENS = "special token spelled out in a message"
CUT_BEFORE_ANSWER = "cut before the first answer"
SHOWN_ROWS = 20


class Options(PluginOptions):
    """Lengths."""

    name: Literal["conversation"] = "conversation"
    cutoff_length: int = Field(1024, ge=2, description="Longest example, in tokens.")
    over_length: Literal["truncate", "drop", "error"] = Field(
        "truncate", description="What happens to longer examples."
    )


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes conversations; it raises `DataError` for over-long rows under `over_length: error`."""
    assert renderer is not None

    def encode(records: Sequence[Record]) -> Encoded:
        encoded = Encoded()
        rendered: list[list[Piece]] = []
        origins: list[Origin] = []
        for record in records:
            assert isinstance(record, Conversation)
            try:
                rendered.append(renderer.pieces(record.messages))
            except RowError as error:
                turns = [{"role": message.role, "content": message.content} for message in record.messages]
                encoded.rejected.append(Rejected(record.origin, str(error), {"messages": turns}))
                continue
            origins.append(record.origin)
            encoded.findings.update(record.notes)
            if renderer.holds_control_tokens(record.messages):
                encoded.findings[CONTROL_TOKENS] += 1
        too_long: list[tuple[Origin, int]] = []
        stops = frozenset(renderer.stop_token_ids)
        for origin, (ids, weights) in zip(origins, renderer.encode_pieces(rendered), strict=True):
            if len(ids) > options.cutoff_length and options.over_length != "truncate":
                too_long.append((origin, len(ids)))
                continue
            _add(encoded, _cut(ids, weights, origin, options.cutoff_length), stops)
        if too_long and options.over_length == "error":
            raise _over_length(too_long, options.cutoff_length)
        encoded.dropped = [origin for origin, _ in too_long]
        return encoded

    return encode


def _cut(ids: list[int], weights: list[float], origin: Origin, cutoff: int) -> TokenizedExample:
    """An example of at most `cutoff` tokens; context behind its last remaining target goes too."""
    full = len(ids)
    if full > cutoff:
        end = cutoff
        while end and weights[end - 1] == 0:
            end -= 1
        end = end or cutoff
        ids, weights = ids[:end], weights[:end]
    return TokenizedExample((TokenSequence(tuple(ids), tuple(weights)),), origin, full)


def _add(encoded: Encoded, example: TokenizedExample, stops: frozenset[int]) -> None:
    encoded.examples.append(example)
    sequence = example.sequences[0]
    if not example.truncated:
        return
    if not any(sequence.weights):
        encoded.findings[CUT_BEFORE_ANSWER] += 1
    elif sequence.input_ids[-1] not in stops:
        encoded.unfinished += 1


def _over_length(too_long: Sequence[tuple[Origin, int]], cutoff: int) -> DataError:
    rows = "\n".join(f"  - {origin}: {length} tokens" for origin, length in too_long[:SHOWN_ROWS])
    more = f"\n  and {len(too_long) - SHOWN_ROWS} more" if len(too_long) > SHOWN_ROWS else ""
    return DataError(
        f"{len(too_long)} rows are longer than data.cutoff_length ({cutoff} tokens), and data.over_length is error:\n{rows}{more}",
        f"Raise data.cutoff_length to {max(length for _, length in too_long)}, or set data.over_length to truncate or drop.",
    )
