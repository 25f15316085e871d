"""Documents for pretraining: joined by EOS and cut into consecutive blocks, nothing discarded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from luthier.config.sections import PluginOptions
from luthier.data.examples import Encoded, RecordLength, TokenizedExample, TokenSequence
from luthier.data.piece_tokens import TEXTS_AT_ONCE, TextTokenizer, control_pattern
from luthier.data.records import Document, Origin, Record
from luthier.foundation.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from luthier.data.rendering import Renderer

RECORD = Document
NEEDS_TEMPLATE = False
CONTROL_TOKENS = "special token spelled out in a document"


class Options(PluginOptions):
    """Blocks."""

    name: Literal["text"] = "text"
    cutoff_length: int = Field(1024, ge=2, description="Tokens of a block; the last one may be shorter.")
    attend_across_documents: bool = Field(
        False,
        description="Whether tokens see the documents before theirs in a block; false: each document stands alone.",
    )


def build(
    options: Options, tokenizer: PreTrainedTokenizerBase, renderer: Renderer | None
) -> Callable[[Sequence[Record]], Encoded]:
    """A function that encodes documents, in their order, into blocks.

    Raises:
        ModelError: the tokenizer has no EOS token to join documents with.
    """
    if tokenizer.eos_token_id is None:
        raise ModelError(
            "the tokenizer has no EOS token, which pretraining puts between documents.",
            "Give it one, or train with stage: sft.",
        )
    start = bos_ids(tokenizer)
    control = control_pattern(tokenizer)

    def encode(records: Sequence[Record]) -> Encoded:
        encoded = Encoded()
        documents = [record for record in records if isinstance(record, Document)]
        spelled_out = sum(control.search(document.text) is not None for document in documents)
        if spelled_out:
            encoded.findings[CONTROL_TOKENS] = spelled_out
        stream = _measured(_tokenized(documents, tokenizer, start), encoded.lengths)
        for origin, parts in _blocks(stream, options.cutoff_length):
            if options.attend_across_documents:
                parts = [[token for part in parts for token in part]]
            sequences = tuple(TokenSequence(tuple(part), (0.0,) + (1.0,) * (len(part) - 1)) for part in parts)
            encoded.examples.append(TokenizedExample(sequences, origin, sum(map(len, parts))))
        return encoded

    return encode


def bos_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The BOS token's id in a list where the tokenizer puts one before a text by itself, else an empty list."""
    bos = tokenizer.bos_token_id
    if bos is None:
        return []
    native = tokenizer("a").input_ids
    return (
        [bos] if native and native[0] == bos and tokenizer("a", add_special_tokens=False).input_ids[:1] != [bos] else []
    )


def _tokenized(
    documents: Sequence[Document], tokenizer: PreTrainedTokenizerBase, start: list[int]
) -> Iterator[tuple[Origin, list[int]]]:
    """Each document's ids, BOS (if any) and EOS around them."""
    text_ids = TextTokenizer(tokenizer)
    for first in range(0, len(documents), TEXTS_AT_ONCE):
        chunk = documents[first : first + TEXTS_AT_ONCE]
        for document, ids in zip(chunk, text_ids([document.text for document in chunk]), strict=True):
            yield document.origin, [*start, *ids, tokenizer.eos_token_id]


def _measured(
    stream: Iterable[tuple[Origin, list[int]]], lengths: list[RecordLength]
) -> Iterator[tuple[Origin, list[int]]]:
    """The same documents; as each passes, its length is added to `lengths`."""
    for origin, ids in stream:
        lengths.append(RecordLength(origin, len(ids)))
        yield origin, ids


def _blocks(stream: Iterable[tuple[Origin, list[int]]], size: int) -> Iterator[tuple[Origin, list[list[int]]]]:
    """Consecutive blocks of `size` tokens (the last may be shorter), each as the pieces of documents it holds."""
    parts: list[list[int]] = []
    room, block_origin = size, None
    for origin, ids in stream:
        done = 0
        while done < len(ids):
            block_origin = block_origin or origin
            parts.append(ids[done : done + room])
            done += len(parts[-1])
            room -= len(parts[-1])
            if room == 0:
                yield block_origin, parts
                parts, room, block_origin = [], size, None
    if parts:
        assert block_origin is not None
        yield block_origin, parts
