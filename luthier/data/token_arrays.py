"""Tokenized examples as a few flat arrays: small, cheap to hand to another process, and read from a file without loading it.

tokens     [T] token ids of all sequences, end to end, uint16 where the vocabulary allows it, else uint32
runs       [R] stretches of tokens of equal loss weight, end to end
sequences  [S] for each sequence, where its tokens and its runs end
examples   [E] for each example, where its sequences end, its row, its length before truncation, its targets
extras     numbers for the stage by name, end to end, and for each example where its own end
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luthier.data.examples import Examples, TokenizedExample, TokenSequence
from luthier.data.records import Origin

RUN = np.dtype([("length", "<i4"), ("weight", "<f8")])
SEQUENCE = np.dtype([("tokens_end", "<i8"), ("runs_end", "<i8")])
EXTRA = np.dtype([("name", "<i4"), ("value", "<f8")])
EXAMPLE = np.dtype(
    [
        ("sequences_end", "<i8"),
        ("extras_end", "<i8"),
        ("file", "<i4"),
        ("row", "<i8"),
        ("untruncated", "<i8"),
        ("targets", "<i8"),
    ]
)
# columns that count within a block, and the array whose length is added when blocks are joined
ENDS = (
    ("sequences", "tokens_end", "tokens"),
    ("sequences", "runs_end", "runs"),
    ("examples", "sequences_end", "sequences"),
    ("examples", "extras_end", "extras"),
)

Array = np.ndarray[Any, np.dtype[Any]]


def token_dtype(vocabulary: int) -> str:
    """The smallest type of ids below `vocabulary`, as numpy spells it."""
    return "<u2" if vocabulary <= 2**16 else "<u4"


class TokenArrays(NamedTuple):
    """The five arrays; see the module."""

    tokens: Array
    runs: Array
    sequences: Array
    examples: Array
    extras: Array


@dataclass(frozen=True, slots=True)
class TokenBlock:
    """Consecutive examples.

    Args:
        files: what the examples' `file` numbers stand for.
        names: what the extras' `name` numbers stand for.
    """

    arrays: TokenArrays
    files: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, examples: Sequence[TokenizedExample], dtype: str) -> TokenBlock:
        """The arrays of examples; `dtype` is that of the token ids."""
        sequences = [sequence for example in examples for sequence in example.sequences]
        token_ends = np.cumsum([len(sequence.input_ids) for sequence in sequences], dtype=np.int64)
        count = int(token_ends[-1]) if sequences else 0
        tokens = np.fromiter(chain.from_iterable(sequence.input_ids for sequence in sequences), dtype, count)
        weights = np.fromiter(chain.from_iterable(sequence.weights for sequence in sequences), "<f8", count)
        run_ends = np.union1d(np.flatnonzero(weights[1:] != weights[:-1]) + 1, token_ends[token_ends > 0])
        runs = np.empty(len(run_ends), RUN)
        runs["length"] = np.diff(run_ends, prepend=0)
        runs["weight"] = weights[run_ends - 1]
        packed = np.empty(len(sequences), SEQUENCE)
        packed["tokens_end"] = token_ends
        packed["runs_end"] = np.searchsorted(run_ends, token_ends, side="right")

        files, names = Numbering(), Numbering()
        rows = np.empty(len(examples), EXAMPLE)
        rows["sequences_end"] = np.cumsum([len(example.sequences) for example in examples], dtype=np.int64)
        rows["extras_end"] = np.cumsum([len(example.extras) for example in examples], dtype=np.int64)
        rows["file"] = [files.number(example.origin.path) for example in examples]
        rows["row"] = [example.origin.row for example in examples]
        rows["untruncated"] = [example.untruncated_length for example in examples]
        rows["targets"] = [example.targets for example in examples]
        extras = [(names.number(name), value) for example in examples for name, value in example.extras.items()]
        arrays = TokenArrays(tokens, runs, packed, rows, np.array(extras, EXTRA))
        return cls(arrays, tuple(files.known), tuple(names.known))


class Numbering:
    """Texts, numbered as they come."""

    def __init__(self, known: Sequence[str] = ()) -> None:
        self.known = list(known)
        self._numbers = {text: number for number, text in reversed(list(enumerate(known)))}

    def number(self, text: str) -> int:
        """The number of a text."""
        if text not in self._numbers:
            self._numbers[text] = len(self.known)
            self.known.append(text)
        return self._numbers[text]

    def renumber(self, column: Array, known: Sequence[str]) -> None:
        """Put our numbers for another numbering's, in place."""
        if len(column):
            column[:] = np.array([self.number(text) for text in known])[column]


class TokenJoiner:
    """Makes blocks, one after the other, parts of one whole: their ends count on, files and names have common numbers."""

    def __init__(self, files: Numbering) -> None:
        self.files = files
        self.names = Numbering()
        self._lengths = dict.fromkeys(TokenArrays._fields, 0)

    def place(self, block: TokenBlock) -> TokenArrays:
        """The block's arrays as they stand in the whole; changed in place."""
        arrays = block.arrays
        for array, column, counted in ENDS:
            getattr(arrays, array)[column] += self._lengths[counted]
        self.files.renumber(arrays.examples["file"], block.files)
        self.names.renumber(arrays.extras["name"], block.names)
        for name in self._lengths:
            self._lengths[name] += len(getattr(arrays, name))
        return arrays


class StoredExamples(Examples):
    """Examples made from arrays when they are asked for.

    Args:
        arrays: of a whole set.
        files, names: what the numbers of files and of extras' names stand for.
        folder, name: the files that the arrays are mapped from, so that another process may open them itself.
    """

    def __init__(
        self,
        arrays: TokenArrays,
        files: Sequence[str],
        names: Sequence[str],
        folder: Path | None = None,
        name: str = "",
    ) -> None:
        self._arrays = arrays
        self._files = tuple(files)
        self._names = tuple(names)
        self._place = (folder, name)

    @classmethod
    def opened(cls, folder: Path, name: str, dtype: str, files: Sequence[str], names: Sequence[str]) -> StoredExamples:
        """The set that stands in the files of `array_file`, mapped into memory.

        Raises:
            OSError, ValueError: the files are gone or of the wrong size.
        """
        arrays = [
            _mapped(array_file(folder, name, array), kind)
            for array, kind in zip(TokenArrays._fields, array_dtypes(dtype), strict=True)
        ]
        return cls(TokenArrays(*arrays), files, names, folder, name)

    @classmethod
    def empty(cls) -> StoredExamples:
        """A set of no examples."""
        return cls(TokenArrays(*(np.empty(0, kind) for kind in array_dtypes("<u2"))), (), ())

    def __reduce__(self) -> tuple[Any, ...]:
        folder, name = self._place
        if folder is None:
            return StoredExamples, (self._arrays, self._files, self._names)
        return StoredExamples.opened, (folder, name, self._arrays.tokens.dtype.str, self._files, self._names)

    def __len__(self) -> int:
        return len(self._arrays.examples)

    def example(self, place: int) -> TokenizedExample:
        row = self._arrays.examples[place]
        before = self._arrays.examples[place - 1] if place else np.zeros((), EXAMPLE)
        sequences = tuple(self._sequence(index) for index in range(before["sequences_end"], row["sequences_end"]))
        extras = self._arrays.extras[before["extras_end"] : row["extras_end"]].tolist()
        origin = Origin(self._files[row["file"]], int(row["row"]))
        named = {self._names[name]: value for name, value in extras}
        return TokenizedExample(sequences, origin, int(row["untruncated"]), named, number=place)

    def _sequence(self, index: int) -> TokenSequence:
        tokens_end, runs_end = self._arrays.sequences[index].tolist()
        first_token, first_run = self._arrays.sequences[index - 1].tolist() if index else (0, 0)
        weights: list[float] = []
        for length, weight in self._arrays.runs[first_run:runs_end].tolist():
            weights += [weight] * length
        return TokenSequence(tuple(self._arrays.tokens[first_token:tokens_end].tolist()), tuple(weights))

    def numbers(self, name: str) -> Array:
        """One of the extras of every example that has it, in their order, float64."""
        extras = self._arrays.extras
        named = extras["name"] == self._names.index(name) if name in self._names else np.zeros(len(extras), bool)
        values: Array = extras["value"][named]
        return values

    def content_hash(self) -> str:
        """sha256 of all that a model reads of the set, however it was made: token ids, their weights, where sequences and
        examples end. Rows' origins and extras are left out."""
        arrays = self._arrays
        digest = hashlib.sha256(arrays.tokens.dtype.str.encode())
        for array in (arrays.tokens, arrays.runs, arrays.sequences, arrays.examples["sequences_end"]):
            digest.update(f"{len(array)}\0".encode())
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()

    @property
    def tokens(self) -> int:
        """Tokens of all examples, after truncation."""
        return len(self._arrays.tokens)

    @property
    def targets(self) -> int:
        """Tokens with a loss."""
        return int(self._arrays.examples["targets"].sum())

    @property
    def token_counts(self) -> Array:
        """Tokens of each example, after truncation: int64 [examples]."""
        ends = np.concatenate([[0], self._arrays.sequences["tokens_end"]])
        counts: Array = np.diff(ends[self._arrays.examples["sequences_end"]], prepend=0)
        return counts

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest sequence."""
        return int(np.diff(self._arrays.sequences["tokens_end"], prepend=0).max(initial=0))


def array_dtypes(tokens: str) -> tuple[Any, ...]:
    """The types of the five arrays."""
    return np.dtype(tokens), RUN, SEQUENCE, EXAMPLE, EXTRA


def array_file(folder: Path, name: str, array: str) -> Path:
    """The file of one array of the set `name`: its bytes, and nothing else."""
    return folder / f"{name}.{array}"


def _mapped(path: Path, dtype: Any) -> Array:
    # a mapping of no bytes is refused by the system
    return np.memmap(path, dtype, mode="r") if path.stat().st_size else np.empty(0, dtype)


class ExamplesPart(Examples):
    """Consecutive examples of a set.

    Args:
        places: theirs in the set.
    """

    def __init__(self, examples: Sequence[TokenizedExample], places: range) -> None:
        self._examples = examples
        self.places = places

    def __len__(self) -> int:
        return len(self.places)

    def example(self, place: int) -> TokenizedExample:
        return self._examples[self.places[place]]


class MemorySet:
    """Blocks added one by one, as a set in memory."""

    def __init__(self, joiner: TokenJoiner, dtype: str) -> None:
        self._joiner = joiner
        self._dtype = dtype
        self._blocks: list[TokenArrays] = []

    def add(self, block: TokenBlock) -> None:
        """The next block; its arrays are changed in place."""
        self._blocks.append(self._joiner.place(block))

    def finish(self) -> StoredExamples:
        """The whole set."""
        arrays = [
            np.concatenate([np.empty(0, kind), *(block[index] for block in self._blocks)])
            for index, kind in enumerate(array_dtypes(self._dtype))
        ]
        return StoredExamples(TokenArrays(*arrays), self._joiner.files.known, self._joiner.names.known)
