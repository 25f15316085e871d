"""Labelled texts: one sequence each, nothing of which is a target, and the label in extras.

A class's number, or a number that is itself what is learnt, stands under `label`; of several labels, 0 or 1 under `label.0`,
`label.1`, ... The tokenizer's own special tokens go around a text and between two; a cut leaves them. A tokenizer that would
join two texts without anything between them gets its EOS token there. Where a tokenizer tells first and second text apart
(token types), `second_text_at` in extras says how many tokens stand before the second.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.data.encoders._labels import as_number, class_numbers, label_names, names_of, only_class, rejected
from luthier.data.encoders._lengths import LengthOptions
from luthier.data.examples import Encoded, RecordLength, TokenizedExample, TokenSequence
from luthier.data.records import Labelled, Record, RowError
from luthier.foundation.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

CutSide = Literal["left", "right"]
RECORD = Labelled
NEEDS_TEMPLATE = False
TRAINS_TOKENS = False


class Options(LengthOptions):
    """Lengths, and the classes."""

    CANNOT_SPLIT = "a labelled text has no turns to be split at"

    name: Literal["labelled"] = "labelled"
    labels: tuple[str, ...] = Field(
        (), description="Names of the classes, in the order of their numbers; empty: labels are numbers."
    )
    multi_label: bool = Field(False, description="Whether a text may have several classes, or none.")


def from_records(records: Sequence[Record]) -> dict[str, Any]:
    """The options that the training data decide."""
    return {"labels": label_names(records)}


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes labelled texts; it raises `DataError` for over-long rows under `over_length: error`."""
    cut_side: CutSide = "left" if options.over_length == "truncate_left" else "right"
    tokens_of = _Tokens(tokenizer, cut_side)

    def encode(records: Sequence[Record]) -> Encoded:
        encoded = Encoded()
        for record in records:
            assert isinstance(record, Labelled)
            try:
                label = _label(record, options)
            except RowError as error:
                encoded.rejected.append(rejected(record, error))
                continue
            ids, places = tokens_of(record)
            full = len(ids)
            if full > options.cutoff_length:
                if options.over_length in ("drop", "error"):
                    encoded.lengths.append(RecordLength(record.origin, full, examples=0))
                    continue
                ids, places = tokens_of(record, options.cutoff_length)
            sequence = TokenSequence(tuple(ids), (0.0,) * len(ids))
            encoded.lengths.append(RecordLength(record.origin, full))
            encoded.examples.append(TokenizedExample((sequence,), record.origin, full, {**label, **places}))
        if encoded.dropped and options.over_length == "error":
            raise _over_length(encoded, options.cutoff_length)
        return encoded

    return encode


def _label(record: Labelled, options: Options) -> dict[str, float]:
    """The label as numbers."""
    if options.multi_label:
        chosen = class_numbers(record, options.labels)
        return {f"label.{number}": float(number in chosen) for number in range(len(options.labels))}
    if options.labels:
        return {"label": float(only_class(record, options.labels))}
    shown = ", ".join(names_of(record))
    number = None if isinstance(record.label, tuple) else as_number(shown)
    if number is None:
        raise RowError(f"has the label {shown!r}, which is no number; give the classes' names with labels.")
    return {"label": number}


class _Tokens:
    """Ids of one text or two, and where the second begins, with the tokenizer's special tokens; of two that are too long the longer is cut first.

    Args:
        cut_side: which end of a text goes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cut_side: CutSide) -> None:
        self._tokenizer = tokenizer
        self._cut_side = cut_side
        probe = tokenizer("a", "b", return_special_tokens_mask=True)
        mask = list(probe["special_tokens_mask"])
        self._typed = 1 in probe.get("token_type_ids", ())
        texts = [index for index, special in enumerate(mask) if not special]
        self._separated = any(mask[texts[0] : texts[-1]]) if texts else True

    def __call__(self, record: Labelled, longest: int | None = None) -> tuple[list[int], dict[str, float]]:
        first, second = record.text, record.text_pair
        if second is not None and not self._separated:
            first, second = f"{first}{self._tokenizer.eos_token or chr(10)}{second}", None
        side, self._tokenizer.truncation_side = self._tokenizer.truncation_side, self._cut_side
        try:
            found = self._tokenizer(first, second, truncation=longest is not None, max_length=longest, verbose=False)
        finally:
            self._tokenizer.truncation_side = side
        ids = list(found["input_ids"])
        if not self._typed:
            return ids, {}
        types = list(found["token_type_ids"])
        return ids, {"second_text_at": float(types.index(1) if 1 in types else len(ids))}


def _over_length(encoded: Encoded, cutoff: int) -> DataError:
    dropped, longest = encoded.dropped, max(record.tokens for record in encoded.lengths)
    return DataError(
        f"{len(dropped)} rows are longer than data.cutoff_length ({cutoff} tokens), and data.over_length is error; "
        f"the first is {dropped[0]}.",
        f"Raise data.cutoff_length to {longest}, or set data.over_length to truncate or drop.",
    )
