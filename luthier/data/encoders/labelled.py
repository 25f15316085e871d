"""Labelled texts: one sequence each, nothing of which is a target, and the label's number under `label` in extras.

The tokenizer's own special tokens go around a text and between two; a cut leaves them. A tokenizer that would join two
texts without anything between them gets its EOS token there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from luthier.data.encoders._lengths import LengthOptions
from luthier.data.examples import Encoded, TokenizedExample, TokenSequence
from luthier.data.records import Labelled, Origin, Record, Rejected, RowError
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


def from_records(records: Sequence[Record]) -> dict[str, Any]:
    """The options that the training data decide."""
    return {"labels": label_names(records)}


def label_names(records: Sequence[Record]) -> tuple[str, ...]:
    """The class names of the training data, sorted, numbers by size; for `Options.labels`, the same in every split."""
    names = {str(record.label) for record in records if isinstance(record, Labelled)}
    numbers = {name: number for name in names if (number := _number(name)) is not None}
    return tuple(sorted(names, key=lambda name: (name not in numbers, numbers.get(name, 0.0), name)))


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes labelled texts; it raises `DataError` for over-long rows under `over_length: error`."""
    number_of = {name: float(index) for index, name in enumerate(options.labels)}
    cut_side: CutSide = "left" if options.over_length == "truncate_left" else "right"
    ids_of = _Tokens(tokenizer, cut_side)

    def encode(records: Sequence[Record]) -> Encoded:
        encoded = Encoded()
        longest = 0
        for record in records:
            assert isinstance(record, Labelled)
            try:
                label = _label(record, number_of)
            except RowError as error:
                values = {"text": record.text, "text_pair": record.text_pair, "label": record.label}
                encoded.rejected.append(Rejected(record.origin, str(error), values))
                continue
            ids = ids_of(record)
            full = len(ids)
            if full > options.cutoff_length:
                longest = max(longest, full)
                if options.over_length in ("drop", "error"):
                    encoded.dropped.append(record.origin)
                    continue
                ids = ids_of(record, options.cutoff_length)
            sequence = TokenSequence(tuple(ids), (0.0,) * len(ids))
            encoded.examples.append(TokenizedExample((sequence,), record.origin, full, {"label": label}))
        if encoded.dropped and options.over_length == "error":
            raise _over_length(encoded.dropped, longest, options.cutoff_length)
        return encoded

    return encode


class _Tokens:
    """Ids of one text or two, with the tokenizer's special tokens; of two that are too long the longer is cut first.

    Args:
        cut_side: which end of a text goes.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, cut_side: CutSide) -> None:
        self._tokenizer = tokenizer
        self._cut_side = cut_side
        mask = list(tokenizer("a", "b", return_special_tokens_mask=True)["special_tokens_mask"])
        texts = [index for index, special in enumerate(mask) if not special]
        self._separated = any(mask[texts[0] : texts[-1]]) if texts else True

    def __call__(self, record: Labelled, longest: int | None = None) -> list[int]:
        first, second = record.text, record.text_pair
        if second is not None and not self._separated:
            first, second = f"{first}{self._tokenizer.eos_token or chr(10)}{second}", None
        side, self._tokenizer.truncation_side = self._tokenizer.truncation_side, self._cut_side
        try:
            found = self._tokenizer(first, second, truncation=longest is not None, max_length=longest, verbose=False)
        finally:
            self._tokenizer.truncation_side = side
        return list(found["input_ids"])


def _label(record: Labelled, number_of: dict[str, float]) -> float:
    """The label's number."""
    name = str(record.label)
    if number_of:
        if name not in number_of:
            shown = ", ".join(list(number_of)[:10])
            raise RowError(f"has the label {name!r}, which is none of the classes: {shown}.")
        return number_of[name]
    number = _number(name)
    if number is None:
        raise RowError(f"has the label {name!r}, which is no number; give the classes' names with labels.")
    return number


def _number(name: str) -> float | None:
    try:
        number = float(name)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _over_length(dropped: Sequence[Origin], longest: int, cutoff: int) -> DataError:
    return DataError(
        f"{len(dropped)} rows are longer than data.cutoff_length ({cutoff} tokens), and data.over_length is error; "
        f"the first is {dropped[0]}.",
        f"Raise data.cutoff_length to {longest}, or set data.over_length to truncate or drop.",
    )
